"""Core dumps of honest and of hostile guests."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_virtainers.errors import RootCommandTimeout, SSHError, VirtainerError
from pytest_virtainers.evidence import cores

MIB = 1024 * 1024


class Guest:
    """Lists the given paths, and sends the entry of `files` for a path: bytes, or what the shell raises or
    returns."""

    def __init__(self, listed: bytes, files: dict[bytes, object] | None = None) -> None:
        self.listed, self.files, self.asked = listed, files or {}, 0

    def __call__(self, script: list[str], *, stdout: Callable[[bytes], object], **_: object) -> tuple[int, str]:
        self.asked += 1
        if len(script) == 3:
            stdout(self.listed)
            return 0, ""
        content = self.files[os.fsencode(script[-1])]
        if isinstance(content, Exception):
            raise content
        if isinstance(content, tuple):
            return content
        assert isinstance(content, bytes)
        for at in range(0, len(content), 100_000):
            stdout(content[at : at + 100_000])
        return 0, ""


def collect(guest: Guest, folder: Path) -> tuple[dict[str, bytes], dict[str, str]]:
    missing = cores.collect(guest, folder, lambda: 6.0)
    return {each.name: each.read_bytes() for each in folder.iterdir()} if folder.exists() else {}, missing


def test_core_dumps_get_safe_names_and_a_list_of_their_paths(tmp_path: Path) -> None:
    paths = [b"/cores/a/core", b"/cores/b/core", b"/cores/../core", b"/x/\x1b]0;evil\x07 \xff", b"/x/.."]
    guest = Guest(b"\n".join(paths), {each: each for each in paths})
    found, missing = collect(guest, tmp_path / "cores")
    assert missing == {}
    listed = found.pop("list.txt").decode()
    assert found == dict(
        zip(["core-1-core", "core-2-core", "core-3-core", "core-4-__0_evil___", "core-5-.."], paths, strict=True)
    )
    assert listed.splitlines() == [
        "core-1-core  /cores/a/core",
        "core-2-core  /cores/b/core",
        "core-3-core  /cores/../core",
        r"core-4-__0_evil___  /x/\x1b]0;evil\x07 \xff",
        "core-5-..  /x/..",
    ]
    assert {each.stat().st_mode & 0o777 for each in (tmp_path / "cores").iterdir()} == {0o600}


@pytest.mark.parametrize("listed", [b".\n.\n", b"..\n", b"core\n\n", b"", b"/x\0y\n"])
def test_relative_paths_are_ignored(listed: bytes, tmp_path: Path) -> None:
    assert collect(Guest(listed), tmp_path / "cores") == ({}, {})
    assert list(tmp_path.iterdir()) == []


def test_a_path_is_copied_once_and_no_more_than_twenty_are(tmp_path: Path) -> None:
    guest = Guest(
        b"".join(b"/core.%d\n" % (number // 2) for number in range(100_000)),
        {b"/core.%d" % number: b"x" for number in range(100_000)},
    )
    found, missing = collect(guest, tmp_path / "cores")
    assert len(found) == 21
    assert missing == {}
    assert guest.asked == 21


def test_a_core_dump_is_cut_at_the_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "_MAX_CORE_BYTES", 2 * MIB)
    monkeypatch.setattr(cores, "_MAX_ALL_BYTES", 3 * MIB)
    whole = os.urandom(3 * MIB)
    guest = Guest(b"/a\n/b\n/c\n", {b"/a": whole, b"/b": whole, b"/c": whole})
    found, missing = collect(guest, tmp_path / "cores")
    assert (found["core-1-a"], found["core-2-b"], "core-3-c" in found) == (whole[: 2 * MIB], whole[:MIB], False)
    assert missing == {
        "cores/core-1-a": "its end: it is larger than 2 MiB",
        "cores/core-2-b": "its end: it is larger than 1 MiB",
        "cores/core-3-c": "there is no room left for it",
    }


@pytest.mark.parametrize("content", [b"", bytes(5 * MIB), b"x" + bytes(5 * MIB) + b"x", b"x" + bytes(5 * MIB + 7)])
def test_holes_stay_holes(content: bytes, tmp_path: Path) -> None:
    found, missing = collect(Guest(b"/core\n", {b"/core": content}), tmp_path / "cores")
    assert (found["core-1-core"], missing) == (content, {})
    assert (tmp_path / "cores" / "core-1-core").stat().st_blocks * 512 < MIB


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ((44, ""), "it is not a regular file"),
        ((1, "cat: \x1b[31mbroken\n"), r"cat: \x1b[31mbroken"),
        ((3, ""), "exit code 3"),
        (RootCommandTimeout("web: a root command did not finish within 6 s"), "it did not finish within 6 s"),
        (SSHError("web: it broke. The last\nlines"), "web: it broke. The last"),
    ],
)
def test_a_failed_copy_is_reported_and_the_others_are_copied(answer: object, why: str, tmp_path: Path) -> None:
    found, missing = collect(Guest(b"/a\n/b\n", {b"/a": answer, b"/b": b"whole"}), tmp_path / "cores")
    assert (found["core-2-b"], missing) == (b"whole", {"cores/core-1-a": why})


def test_a_guest_that_cannot_list_them_is_an_error(tmp_path: Path) -> None:
    def broken(script: list[str], **_: object) -> tuple[int, str]:
        return 1, "sh: \x1b no\n"

    with pytest.raises(VirtainerError, match=r"core dumps could not be listed: sh: \\x1b no"):
        cores.collect(broken, tmp_path / "cores", lambda: 1.0)


def test_a_link_in_place_of_a_core_dump_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    folder = tmp_path / "cores"

    class Planting(Guest):
        """Has an accomplice on the host, who knows the next name."""

        def __call__(self, script: list[str], **arguments: object) -> tuple[int, str]:
            if len(script) > 3 and not (folder / "core-2-b").is_symlink():
                (folder / "core-2-b").symlink_to(victim)
            return super().__call__(script, **arguments)  # type: ignore[arg-type]

    with pytest.raises(FileExistsError):
        collect(Planting(b"/a\n/b\n", {b"/a": b"x", b"/b": b"evil"}), folder)
    assert victim.read_text() == "untouched"


def test_only_regular_files_of_the_guest_are_read(tmp_path: Path) -> None:
    (tmp_path / "core").write_text("content")
    (tmp_path / "link").symlink_to("core")
    os.mkfifo(tmp_path / "fifo")
    for name, code in (("core", 0), ("link", 44), ("fifo", 44), (".", 44), ("none", 44)):
        done = subprocess.run(
            ["sh", "-c", cores.READ, "sh", tmp_path / name], capture_output=True, check=False, timeout=10
        )
        assert (done.returncode, done.stdout) == (code, b"" if code else b"content"), name


def listed_in(folder: Path, pattern: str) -> list[str]:
    """Run the search for core dumps with `folder` as the guest's root; return the paths that it finds."""
    (folder / "pattern").write_text(f"{pattern}\n")
    script = cores.FIND.replace("/proc/sys/kernel/core_pattern", str(folder / "pattern"))
    found = subprocess.run(["sh", "-c", script.replace("/var/", f"{folder}/var/")], capture_output=True, check=True)
    assert found.stderr == b""
    return [each.removeprefix(f"{folder}/") for each in found.stdout.decode().splitlines()]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("{}/my cores/core.%e.%p", {"my cores/core.a b.7", "my cores/core.sleep.8"}),
        ("{}/%e/dump", {"sleep/dump", "sleep/dump.9"}),
        ("{}/100%%", {"100%"}),
        ("{}/none/core.%p", set()),
        ("|{}/my cores/core.%e.%p", set()),
        ("core", set()),
    ],
)
def test_core_dumps_are_where_the_guests_kernel_writes_them(pattern: str, names: set[str], tmp_path: Path) -> None:
    always = {"var/crash/today/vmcore", "var/lib/systemd/coredump/core.x.zst"}
    here = {"my cores/core.a b.7", "my cores/core.sleep.8", "my cores/else", "sleep/dump", "sleep/dump.9", "100%"}
    for each in always | here | {"my cores/core.folder.1/inside", "core"}:
        (tmp_path / each).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / each).touch()
    found = listed_in(tmp_path, pattern.format(tmp_path))
    assert sorted(found) == sorted(always | names)


def test_of_many_core_dumps_the_newest_are_kept(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"core.{number}").touch()
        os.utime(tmp_path / f"core.{number}", (number, number))
    assert listed_in(tmp_path, f"{tmp_path}/core.%p") == [f"core.{number}" for number in range(29, 9, -1)]
