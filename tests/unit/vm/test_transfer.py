"""The scripts of a transfer, run by the local shell as a guest would run them."""

import io
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest

from pytest_virtainers.errors import RootCommandTimeout, SSHError, TransferError
from pytest_virtainers.vm import transfer

MIB = 1024 * 1024
NAMES = ["plain", "with space", 'it\'s "quoted"', "new\nline", "ünïcødé-日本", "-dash", "$HOME;`id`", "trailing\n"]


def local_shell(
    script: list[str], *, stdin: IO[bytes] | None, stdout: Callable[[bytes], object], timeout: float | None
) -> tuple[int, str]:
    data = b"" if stdin is None else stdin.read()
    finished = subprocess.run(script, input=data, capture_output=True, timeout=timeout, check=False)
    stdout(finished.stdout)
    return finished.returncode, finished.stderr.decode()


def put(source: Path, dest: str) -> str:
    return transfer.put(local_shell, source, dest, None, 10)


def get(source: str, dest: Path) -> Path:
    return transfer.get(local_shell, source, dest, 10).path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "sub").mkdir(parents=True)
    for name in NAMES:
        (root / name).write_text(name)
    (root / "sub" / "script").write_text("#!/bin/sh\n")
    (root / "sub" / "script").chmod(0o751)
    (root / "link").symlink_to("sub/script")
    (root / "dangling").symlink_to("/nowhere at all")
    (root / "empty").mkdir(mode=0o711)
    return root


def listing(root: Path) -> dict[str, object]:
    return {
        str(path.relative_to(root)): (
            path.readlink() if path.is_symlink() else "dir" if path.is_dir() else path.read_bytes(),
            None if path.is_symlink() else path.stat().st_mode,
        )
        for path in root.rglob("*")
    }


@pytest.mark.parametrize("name", NAMES)
def test_any_file_name_goes_there_and_back(name: str, tmp_path: Path) -> None:
    source = tmp_path / name
    source.write_text("content")
    (tmp_path / "guest").mkdir()
    assert put(source, str(tmp_path / "guest")) == str(tmp_path / "guest" / name)
    (tmp_path / "back").mkdir()
    assert get(str(tmp_path / "guest" / name), tmp_path / "back").read_text() == "content"
    assert [path.name for path in (tmp_path / "back").iterdir()] == [name]


@pytest.mark.parametrize("there_and_back", ["put", "get"])
def test_trees_keep_names_modes_and_links(there_and_back: str, tree: Path, tmp_path: Path) -> None:
    dest = tmp_path / "a new" / "place"
    if there_and_back == "put":
        put(tree, str(dest))
    else:
        transfer.get(local_shell, str(tree), dest, 10, special=True)
    assert listing(dest) == listing(tree)


def sparse_file(path: Path) -> Path:
    with path.open("wb") as file:
        file.truncate(64 * MIB)
        file.seek(40 * MIB)
        file.write(b"in the middle")
    return path


def test_holes_are_kept(tmp_path: Path) -> None:
    source = sparse_file(tmp_path / "source")
    there = Path(put(source, f"{tmp_path}/there"))
    (tmp_path / "folder").mkdir()
    sparse_file(tmp_path / "folder" / "source")
    deeper = Path(put(tmp_path / "folder", f"{tmp_path}/copy")) / "source"
    back = get(str(source), tmp_path / "back")
    for each in (there, deeper, back):
        assert each.read_bytes() == source.read_bytes()
        assert each.stat().st_blocks * 512 < MIB


def test_a_guest_without_sparse_tar_gets_zeros(tmp_path: Path) -> None:
    source, sent = sparse_file(tmp_path / "source"), []

    def busybox(
        script: list[str], *, stdin: IO[bytes] | None, stdout: Callable[[bytes], object], timeout: float | None
    ) -> tuple[int, str]:
        if script == ["tar", "--version"]:
            stdout(b"tar (busybox) 1.37.0\n")
            return 0, ""
        if stdin is not None:
            sent.append(stdin.read())
            stdin = io.BytesIO(sent[0])
        return local_shell(script, stdin=stdin, stdout=stdout, timeout=timeout)

    transfer.put(busybox, source, f"{tmp_path}/there", None, 60)
    assert len(sent[0]) > 64 * MIB
    assert (tmp_path / "there").read_bytes() == source.read_bytes()


def test_names_follow_cp(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tree / "dangling").unlink()
    assert put(tree / "plain", f"{tmp_path}/renamed") == f"{tmp_path}/renamed"
    assert put(tree / "plain", f"{tmp_path}/new folder/") == f"{tmp_path}/new folder/plain"
    assert put(tree, f"{tmp_path}/here") == f"{tmp_path}/here/tree"
    assert get(str(tree), tmp_path / "here") == tmp_path / "here" / "tree"
    assert listing(tmp_path / "here" / "tree") == listing(tree), "merged into the existing folder"
    received = transfer.get(local_shell, str(tree / "plain"), f"{tmp_path}/another folder/", 10)
    assert received.path == tmp_path / "another folder" / "plain"
    assert received.path.read_text() == "plain"


def test_a_file_replaces_a_file_and_keeps_its_neighbours(tree: Path, tmp_path: Path) -> None:
    new = tmp_path / "plain"
    new.write_text("newer")
    put(new, str(tree))
    assert (tree / "plain").read_text() == "newer"
    assert (tree / "with space").read_text() == "with space"


def test_a_missing_source_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none"):
        put(tmp_path / "none", "/tmp/x")
    with pytest.raises(FileNotFoundError, match=r"in the guest.*none"):
        get(str(tmp_path / "none"), tmp_path / "x")
    with pytest.raises(FileNotFoundError, match=r"in the guest.*none"):
        transfer.read(local_shell, str(tmp_path / "none"), 10)


def test_a_failed_transfer_reports_the_reason_and_leaves_nothing(tree: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("old")
    with pytest.raises(TransferError, match=r"copying .*tree to .*file/x in the guest failed in the guest") as caught:
        put(tree, f"{blocked}/x")
    assert "file" in str(caught.value)
    with pytest.raises(TransferError, match="overwrite"):
        put(tree, str(blocked))
    assert blocked.read_text() == "old"
    assert not list(tmp_path.glob(".virtainer.*"))


def test_conflicts_of_files_and_folders_are_reported_and_change_nothing(
    tree: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    here = tmp_path / "here"
    (here / "plain").mkdir(parents=True)
    (here / "tree" / "sub").mkdir(parents=True)
    (here / "tree" / "sub" / "script").mkdir()
    (here / "file").write_text("old")
    for source, dest, words in (
        (tree / "plain", here, "of the guest to .*here failed: plain is a folder here and a file in the guest"),
        (tree, here / "file", "of the guest to .*file failed: file is a file here and a folder in the guest"),
        (tree, here / "file" / "x", r"of the guest to .*file/x failed here: .*file"),
        (tree, here, "failed: tree/sub/script is a folder here and a file in the guest. Remove it first"),
    ):
        with pytest.raises(TransferError, match=words):
            get(str(source), dest)
    assert (here / "file").read_text() == "old"
    assert [each.name for each in (here / "tree").iterdir()] == ["sub"], "nothing is merged"
    assert not list(here.glob(".virtainer.*"))
    assert capfd.readouterr() == ("", ""), "the output is only in the error"


def half_a_tree(tree: Path) -> bytes:
    """Return the stream of a folder, cut after its first file."""
    first = subprocess.run(
        ["tar", "-c", "-f", "-", "--no-recursion", "-C", str(tree.parent), "tree", "tree/plain"],
        capture_output=True,
        check=True,
    ).stdout
    return first[: 3 * 512]


def test_a_connection_that_breaks_between_two_files_installs_nothing(tree: Path, tmp_path: Path) -> None:
    cut, calls = half_a_tree(tree), []
    (tmp_path / "guest").mkdir()

    def breaking_shell(
        script: list[str], *, stdin: IO[bytes] | None, stdout: Callable[[bytes], object], timeout: float | None
    ) -> tuple[int, str]:
        calls.append(script)
        if stdin is None:
            return local_shell(script, stdin=None, stdout=stdout, timeout=timeout)
        assert local_shell(script, stdin=io.BytesIO(cut), stdout=stdout, timeout=timeout) == (0, "")
        raise SSHError("the connection broke")

    with pytest.raises(SSHError, match="broke"):
        transfer.put(breaking_shell, tree, f"{tmp_path}/guest/app", None, 10)
    assert len(calls) == 2, "the second one removes what has arrived"
    assert not list((tmp_path / "guest").iterdir())


def test_a_local_tar_that_fails_installs_nothing(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tar that cannot read a file reports that, and continues."""
    tar = tmp_path / "bin" / "tar"
    tar.parent.mkdir()
    real = shutil.which("tar")
    tar.write_text(f'#!/bin/sh\n{real} "$@" || exit\n[ "$1" != -c ] || {{ echo "cannot open x" >&2; exit 2; }}\n')
    tar.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tar.parent}:{os.environ['PATH']}")
    (tmp_path / "guest").mkdir()
    with pytest.raises(TransferError, match=r"failed here \(tar exit code 2\): cannot open x"):
        put(tree, f"{tmp_path}/guest/app")
    assert not list((tmp_path / "guest").iterdir())


@pytest.mark.parametrize("message", [b"", b"/stage", b"/stage\0", b"/stage\0/dest\0more\0", b"x" * 100_000])
def test_a_guest_that_does_not_report_where_it_unpacks_is_an_error(message: bytes, tree: Path) -> None:
    def lying_shell(
        script: list[str], *, stdin: IO[bytes] | None, stdout: Callable[[bytes], object], timeout: float | None
    ) -> tuple[int, str]:
        while stdin is not None and stdin.read(MIB):
            pass
        stdout(message)
        return 0, ""

    with pytest.raises(TransferError, match="to /x in the guest failed in the guest: it printed "):
        transfer.put(lying_shell, tree, "/x", None, 10)


def test_output_of_a_guest_is_escaped(tmp_path: Path) -> None:
    def failing_shell(
        script: list[str], *, stdin: IO[bytes] | None, stdout: Callable[[bytes], object], timeout: float | None
    ) -> tuple[int, str]:
        return 2, "tar: \x1b]0;evil\x07\ntar: \x9b31m\n"

    words = r"failed in the guest \(exit code 2\): tar: \\x1b\]0;evil\\x07\ntar: \\x9b31m$"
    with pytest.raises(TransferError, match=words):
        transfer.get(failing_shell, "/x", tmp_path, 10)


def test_write_keeps_mode_and_follows_links(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    transfer.write(local_shell, str(link), b"new", mode=None, owner=None, timeout=10)
    assert (target.read_text(), target.stat().st_mode & 0o777, link.is_symlink()) == ("new", 0o640, True)
    transfer.write(local_shell, str(tmp_path / "a/b c"), b"\xff", mode=0o600, owner=None, timeout=10)
    assert ((tmp_path / "a/b c").read_bytes(), (tmp_path / "a/b c").stat().st_mode & 0o777) == (b"\xff", 0o600)
    assert transfer.read(local_shell, str(tmp_path / "a/b c"), 10) == b"\xff"
    with pytest.raises(TransferError, match=r"writing .* failed \(exit code 1\): mv: "):
        transfer.write(local_shell, str(tmp_path / "a"), b"x", mode=None, owner=None, timeout=10)


def test_a_text_that_arrives_incomplete_is_not_written(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("old")

    def breaking_shell(
        script: list[str], *, stdin: IO[bytes] | None, stdout: Callable[[bytes], object], timeout: float | None
    ) -> tuple[int, str]:
        assert stdin is not None
        return local_shell(script, stdin=io.BytesIO(stdin.read()[:3]), stdout=stdout, timeout=timeout)

    with pytest.raises(TransferError, match="only 3 of 7 bytes have arrived"):
        transfer.write(breaking_shell, str(target), b"content", mode=None, owner=None, timeout=10)
    assert target.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["target"]


@pytest.mark.parametrize(
    ("copy", "action"),
    [
        (lambda shell, here: transfer.put(shell, here / "x", "/x", None, 1.0), "copying .*/x to /x in the guest"),
        (lambda shell, here: transfer.get(shell, "/x", here / "y", 1.0), "copying /x of the guest to .*/y"),
        (lambda shell, _here: transfer.read(shell, "/x", 1.0), "reading /x in the guest"),
        (
            lambda shell, _here: transfer.write(shell, "/x", b"", mode=None, owner=None, timeout=1.0),
            "writing /x in the guest",
        ),
    ],
    ids=["put", "get", "read", "write"],
)
def test_a_copy_that_does_not_end_in_time_is_a_transfer_error(copy: Any, action: str, tmp_path: Path) -> None:
    def shell(*_: object, **__: object) -> tuple[int, str]:
        raise RootCommandTimeout("web: a root command did not finish within 1 s")

    (tmp_path / "x").write_text("x")
    with pytest.raises(TransferError, match=f"^{action} failed: web: a root command did not finish within 1 s$"):
        copy(shell, tmp_path)
