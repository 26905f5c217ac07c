"""Files of a real VM: tests that a local shell cannot replace."""

import threading
import time
from pathlib import Path

import pytest

from pytest_virtainers import VM, SSHError, TransferError

MIB = 1024 * 1024


def test_a_file_with_holes_goes_there_and_back(session_vm: VM, tmp_path: Path) -> None:
    source = tmp_path / "disk"
    with source.open("wb") as file:
        file.truncate(1024 * MIB)
        for where in (300 * MIB, 900 * MIB):
            file.seek(where)
            file.write(b"written")
    began = time.monotonic()
    session_vm.put(source, "/var/tmp/disk")
    back = session_vm.get("/var/tmp/disk", tmp_path / "back")
    assert time.monotonic() - began < 120, "holes are not sent, which would take minutes"
    size, blocks = map(int, session_vm.run("stat -c '%s %b' /var/tmp/disk").stdout.split())
    assert size == back.stat().st_size == 1024 * MIB
    assert blocks * 512 < MIB
    assert back.stat().st_blocks * 512 < MIB
    with back.open("rb") as file:
        for where in (300 * MIB, 900 * MIB):
            file.seek(where)
            assert file.read(8) == b"written\0"


def test_an_upload_that_breaks_or_takes_too_long_leaves_nothing(session_vm: VM, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(100):
        (tree / str(number)).write_bytes(bytes(4 * MIB))
    session_vm.run("mkdir -p /var/tmp/broken/tree && echo old >/var/tmp/broken/tree/old")
    connection = session_vm.machine.ssh.current
    assert connection is not None

    def break_it() -> None:  # when the upload has certainly begun
        session_vm.run("until ls -d /var/tmp/broken/.virtainer.*/tree/*; do sleep 0.1; done", sudo=True)
        connection.close()

    breaking = threading.Thread(target=break_it)
    breaking.start()
    with pytest.raises(SSHError):
        session_vm.put(tree, "/var/tmp/broken")
    breaking.join()
    assert session_vm.run("cd /var/tmp/broken && find . -type f", sudo=True).stdout == "./tree/old\n"
    with pytest.raises(TransferError, match="did not finish within 1 s"):
        session_vm.put(tree, "/var/tmp/broken", timeout=1)
    assert session_vm.run("cd /var/tmp/broken && find . -type f", sudo=True).stdout == "./tree/old\n"


def test_glob_returns_matching_paths_sorted(session_vm: VM) -> None:
    session_vm.run("mkdir /var/tmp/found && cd /var/tmp/found && touch b.log 'a b.log' c.txt && ln -s /none d.log")
    assert session_vm.glob("/var/tmp/found/*.log") == [
        "/var/tmp/found/a b.log",
        "/var/tmp/found/b.log",
        "/var/tmp/found/d.log",
    ]
    assert session_vm.glob("/var/tmp/f*/[bc].???") == ["/var/tmp/found/b.log", "/var/tmp/found/c.txt"]
    assert session_vm.glob("/var/tmp/found/*.none") == []


@pytest.mark.parametrize("pattern", ["found/*", "/var/a b*", "/var/$HOME/*", "/var/`id`"])
def test_glob_refuses_shell_code(session_vm: VM, pattern: str) -> None:
    with pytest.raises(ValueError, match="an absolute pattern without blanks"):
        session_vm.glob(pattern)
