"""Files of a real VM: what a local shell cannot show."""

import time
from pathlib import Path

from pytest_virtainers import VM

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
    assert time.monotonic() - began < 30, "the holes did not travel"
    size, blocks = map(int, session_vm.run("stat -c '%s %b' /var/tmp/disk").stdout.split())
    assert size == back.stat().st_size == 1024 * MIB
    assert blocks * 512 < MIB
    assert back.stat().st_blocks * 512 < MIB
    with back.open("rb") as file:
        for where in (300 * MIB, 900 * MIB):
            file.seek(where)
            assert file.read(8) == b"written\0"
