"""Private folders, and what is left of them when a process is killed."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pytest_virtainers import scratch

KILLED = """
import os, signal
from pytest_virtainers import scratch

folder = scratch.folder("ssh")
print(folder.name, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def left_behind() -> Path:
    """Give what a process has left that was killed."""
    ended = subprocess.run([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True, check=False)
    left = Path(ended.stdout.strip())
    (left / "key").touch()
    return left


def test_a_folder_is_private_and_says_whose_it_is(temp: Path) -> None:
    with scratch.folder("ssh") as name:
        folder = Path(name)
        assert folder.stat().st_mode & 0o777 == 0o700
        assert re.fullmatch(rf"virtainers-ssh-by-{os.getpid()}-.+", folder.name)
        assert folder.parent == temp
    assert not folder.exists()


def test_what_a_killed_process_has_left_is_swept_and_nothing_else(temp: Path) -> None:
    left = left_behind()
    dead = re.findall(r"\d+", left.name)[0]
    others = {
        f"virtainers-ssh-by-{os.getppid()}-x",
        f"virtainers-by-{dead}-x",
        f"my-virtainers-ssh-by-{dead}-x",
        f"virtainers-ssh-by-{dead}",
    }
    for name in others:
        (temp / name).mkdir()
    with scratch.folder("ssh") as ours:
        scratch.sweep()
        assert {each.name for each in temp.iterdir()} == {*others, Path(ours).name}


def test_what_another_user_has_left_is_not_ours_to_sweep(temp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = left_behind()
    with monkeypatch.context() as patch:
        patch.setattr(os, "getuid", lambda: left.stat().st_uid + 1)
        scratch.sweep()
    assert left.exists()


def test_two_may_sweep_at_the_same_time(temp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = [left_behind(), left_behind()]

    def dies_while_another_process_sweeps(_pid: int) -> bool:
        for each in left:
            shutil.rmtree(each, ignore_errors=True)
        return False

    monkeypatch.setattr(scratch, "_lives", dies_while_another_process_sweeps)
    scratch.sweep()
    assert not list(temp.iterdir())
