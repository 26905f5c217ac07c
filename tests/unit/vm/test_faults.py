"""Faults end with their block, however that ends. The guest's shell is the local one, with fake tools."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from pytest_virtainers.errors import VirtainerError
from pytest_virtainers.vm.faults import Faults

if TYPE_CHECKING:
    from pathlib import Path

# A simulated file system of 2 MiB, on which each file of the stage uses 1 MiB.
STAT = """#!/bin/sh
taken=$(ls -d "$FOLDER"/.virtainer-fill.*/* 2>/dev/null | wc -l)
echo "$(((2 - taken) * 256)) * 4096"
"""
FALLOCATE = """#!/bin/sh
case $2 in 1024K) : >"$3" ;; *) exit 1 ;; esac
"""
BREAKS = """#!/bin/sh
: >"$3"
kill -9 $PPID
"""


class Guest:
    """Runs the scripts for root as this user, with another `stat` and `fallocate`."""

    def __init__(self, folder: Path, fallocate: str) -> None:
        self.full = folder / "disk"
        self.loses_us = False
        tools = folder / "tools"
        for each in (self.full, tools):
            each.mkdir()
        for name, text in {"stat": STAT, "fallocate": fallocate}.items():
            (tools / name).write_text(text)
            (tools / name).chmod(0o755)
        self._environ = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "FOLDER": str(self.full)}

    def run_as_root(self, script: str, *words: str, timeout: float | None = 60) -> bytes:
        done = subprocess.run(
            ["sh", "-c", script, "sh", *words], env=self._environ, capture_output=True, check=False, timeout=timeout
        )
        if self.loses_us:
            self.loses_us = False
            raise pytest.fail.Exception("Timeout >1s")
        if done.returncode != 0:
            raise VirtainerError(f"exit {done.returncode}: {done.stderr.decode()}")
        return done.stdout

    @property
    def files(self) -> list[str]:
        return sorted(str(each.relative_to(self.full)).partition("/")[2] for each in self.full.glob("*/*"))


def fill(guest: Guest, **arguments: Any) -> Any:
    machine: Any = guest
    return Faults(machine).fill_disk(str(guest.full), **arguments)


def test_fill_disk_lasts_as_long_as_its_block(tmp_path: Path) -> None:
    guest = Guest(tmp_path, FALLOCATE)
    with fill(guest):
        assert guest.files == ["0", "1"]
    with fill(guest, leave="1M"):
        assert guest.files == ["0"]
    assert list(guest.full.iterdir()) == []


def test_a_block_that_fails_leaves_nothing(tmp_path: Path) -> None:
    guest = Guest(tmp_path, FALLOCATE)
    with pytest.raises(ValueError, match="of the test"), fill(guest):
        raise ValueError("of the test")
    assert list(guest.full.iterdir()) == []


def test_a_script_that_fails_midway_leaves_nothing(tmp_path: Path) -> None:
    guest = Guest(tmp_path, BREAKS)
    with pytest.raises(VirtainerError, match="exit -9"), fill(guest):
        pytest.fail("it is not full")
    assert list(guest.full.iterdir()) == []


def test_a_script_whose_end_is_not_seen_leaves_nothing(tmp_path: Path) -> None:
    guest = Guest(tmp_path, FALLOCATE)
    guest.loses_us = True
    with pytest.raises(pytest.fail.Exception, match="Timeout"), fill(guest):
        pytest.fail("the script did not return")
    assert list(guest.full.iterdir()) == []
