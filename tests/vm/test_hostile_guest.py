"""Guests with an attacker's programs: copies from them do not change the test's host."""

import io
import json
import os
import stat
import tarfile
from pathlib import Path

import pytest

from pytest_virtainers import VM, TransferError

# Sends the next of the prepared streams each time.
EVIL_TAR = """#!/bin/sh
case $1 in --version) echo 'tar (GNU tar) 1.35'; exit ;; esac
number=$(cat /evil/number)
echo $((number + 1)) >/evil/number
exec cat /evil/$number.tar
"""


def stream(*members: tuple[str, bytes, str, int]) -> bytes:
    """Pack members: name, type, target of a link, mode."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, kind, target, mode in members:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname, entry.mode = kind, target, mode
            entry.size = 4 if kind == tarfile.REGTYPE else 0
            tar.addfile(entry, io.BytesIO(b"evil"))
    return archive.getvalue()


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """Create a file of the host that the guest tries to change."""
    path = tmp_path / "host" / "victim"
    path.parent.mkdir()
    path.write_text("untouched")
    path.chmod(0o600)
    return path


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def untouched(victim: Path) -> bool:
    is_so = victim.read_text() == "untouched" and stat.S_IMODE(victim.stat().st_mode) == 0o600
    return is_so and names(victim.parent) == ["victim"]


def replace_tar(vm: VM, folder: Path, *streams: bytes) -> None:
    """Make the guest's tar send these streams, one for each call."""
    evil = folder / "evil"
    evil.mkdir()
    for number, each in enumerate(streams):
        (evil / f"{number}.tar").write_bytes(each)
    (evil / "number").write_text("0")
    vm.put(evil, "/evil")
    vm.write_text("/usr/bin/tar.new", EVIL_TAR, mode=0o755)
    vm.run("mkdir /srv/tree && mv /usr/bin/tar.new /usr/bin/tar", sudo=True)


def test_repeated_copies_of_a_tree_change_nothing_outside(vm: VM, tmp_path: Path, victim: Path) -> None:
    folder, file, link = tarfile.DIRTYPE, tarfile.REGTYPE, tarfile.SYMTYPE
    top = ("tree", folder, "", 0o755)
    replace_tar(
        *(vm, tmp_path),
        stream(top, ("tree/x", link, str(victim), 0o777), ("tree/y", link, str(victim.parent), 0o777)),
        stream(top, ("tree/x", file, "", 0o4777), ("tree/y", folder, "", 0o777), ("tree/y/victim", file, "", 7)),
        stream(("tree", link, str(victim.parent), 0o777)),
        stream(top, ("tree/victim", file, "", 0o4777)),
        stream(top, ("tree/../../host/victim", file, "", 0o4777)),
        stream(top, (str(victim), file, "", 0o4777)),
        stream(top, ("tree/z", tarfile.LNKTYPE, str(victim), 0o644), ("tree/z", file, "", 0o4777)),
        b"\0\1" * 5000,
    )
    out = tmp_path / "out"
    assert vm.get("/srv/tree", out) == out
    assert names(out) == []
    assert vm.get("/srv/tree", out) == out / "tree"
    assert stat.S_IMODE((out / "tree" / "x").stat().st_mode) == 0o777
    words = "it is a symbolic link to .*/host. Copy .*/host instead, or the link itself with special=True"
    with pytest.raises(TransferError, match=words):
        vm.get("/srv/tree", out)
    vm.get("/srv/tree", tmp_path / "out")
    for words in ("not part of what was asked for",) * 3 + ("cannot be read: a header is damaged",):
        with pytest.raises(TransferError, match=words):
            vm.get("/srv/tree", out)
    assert names(out / "tree") == ["victim", "x", "y"]
    assert names(tmp_path) == ["evil", "host", "out"]
    assert untouched(victim)
    skipped = f"skipped 2 of 3: x -> {victim} (link out of the tree), y -> {victim.parent} (link out of the tree)"
    assert skipped in vm.log.text


def test_special_files_are_skipped_unless_requested(vm: VM, tmp_path: Path) -> None:
    vm.run(
        "mkdir /srv/tree && cd /srv/tree && cp /bin/true program && chmod 4755 program && mkfifo fifo "
        "&& mknod null c 1 3 && ln -s /etc/passwd passwd && ln -s program inside && touch a",
        sudo=True,
    )
    plain = vm.get("/srv/tree", tmp_path / "plain")
    assert names(plain) == ["a", "inside", "program"]
    assert stat.S_IMODE((plain / "program").stat().st_mode) == 0o755
    assert "skipped 3 of 7: " in vm.log.text
    everything = vm.get("/srv/tree", tmp_path / "everything", special=True)
    devices = ["null"] if os.geteuid() == 0 else []
    assert names(everything) == sorted(["a", "inside", "program", "fifo", "passwd", *devices])
    assert stat.S_IMODE((everything / "program").stat().st_mode) == 0o4755
    with pytest.raises(TransferError, match=r"it is a symbolic link to /etc/passwd\. Copy /etc/passwd instead"):
        vm.get("/srv/tree/passwd", tmp_path / "passwd")


def test_core_dumps_of_a_hostile_guest_change_nothing_outside(
    pytester: pytest.Pytester, tmp_path: Path, victim: Path
) -> None:
    """The guest lists `.` twice, which its tar sends as a link first, and then as a file of that name."""
    streams = [
        stream((".", tarfile.DIRTYPE, "", 0o755), ("./x", tarfile.SYMTYPE, str(victim), 0o777)),
        stream((".", tarfile.DIRTYPE, "", 0o755), ("./x", tarfile.REGTYPE, "", 0o4777)),
    ]
    for number, each in enumerate(streams):
        (tmp_path / f"{number}.tar").write_bytes(each)
    listed = r". . /evil/core /evil/core /evil/../evil/core '/evil/\0033]0;x\0007' /evil/fifo"
    head = f"#!/bin/sh\nprintf '%b\\n' {listed}\n"
    pytester.makepyfile(
        f"""
        import pytest

        @pytest.mark.virtainer("web", ram="512M", disk="3G", cpus=2)
        def test_it(vm):
            vm.run("mkdir /evil && echo 0 >/evil/number && mkfifo /evil/fifo && echo dump >/evil/core", sudo=True)
            for number in (0, 1):
                vm.put("{tmp_path}/" + str(number) + ".tar", "/evil/")
            vm.write_text("/usr/bin/tar.new", {EVIL_TAR!r}, mode=0o755)
            vm.write_text("/usr/bin/head.new", {head!r}, mode=0o755)
            vm.run("for each in tar head; do mv /usr/bin/$each.new /usr/bin/$each; done", sudo=True)
            vm.run("false")
        """
    )
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(failed=1)
    assert untouched(victim)
    (folder,) = (pytester.path / "virtainer-artifacts").glob("*/web")
    cores = folder / "cores"
    assert {each.name: each.read_text() for each in cores.iterdir() if each.name != "list.txt"} == {
        "core-1-core": "dump\n",
        "core-2-core": "dump\n",
    }
    assert (cores / "list.txt").read_text() == "core-1-core  /evil/core\ncore-2-core  /evil/../evil/core\n"
    assert {stat.S_IMODE(each.lstat().st_mode) for each in cores.iterdir()} == {0o600}
    assert json.loads((folder / "manifest.json").read_text())["missing"] == {
        "cores/core-3-__0_x_": "it is not a regular file",
        "cores/core-4-fifo": "it is not a regular file",
    }
