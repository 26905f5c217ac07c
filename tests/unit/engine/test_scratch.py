"""Private folders, and what is left of them when a process is killed."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from pytest_virtainers.engine import ownership, scratch

KILLED = """
import os, signal
from pytest_virtainers.engine import ownership, scratch

folder = scratch.Folder("ssh")
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


def give(folder: Path, **facts: str) -> None:
    """Change what a folder says of its owner."""
    file = folder / ".owner.json"
    said = json.loads(file.read_text())
    file.write_text(json.dumps({**said, **{f"virtainers.owner-{name}": value for name, value in facts.items()}}))


def test_a_folder_is_private_and_says_whose_it_is(temp: Path) -> None:
    with scratch.Folder("ssh") as name:
        folder = Path(name)
        assert folder.stat().st_mode & 0o777 == 0o700
        assert folder.name.startswith("virtainers-scratch-ssh-")
        assert json.loads((folder / ".owner.json").read_text())["virtainers.owner-pid"] == str(os.getpid())
        assert folder.parent == temp
    assert not folder.exists()


def test_what_a_killed_process_has_left_is_swept_and_nothing_else(temp: Path) -> None:
    left, elsewhere = left_behind(), left_behind()
    give(elsewhere, host="elsewhere/1")
    others = {"virtainers-scratch-ssh-just-made", "my-virtainers-scratch-ssh-x", elsewhere.name}
    for name in others - {elsewhere.name}:
        (temp / name).mkdir()
    shutil.copy(left / ".owner.json", temp / "my-virtainers-scratch-ssh-x")
    (temp / "virtainers-scratch-file").touch()
    (temp / "virtainers-scratch-damaged").mkdir()
    (temp / "virtainers-scratch-damaged/.owner.json").write_text("{")
    with scratch.Folder("ssh") as ours:
        scratch.sweep()
        files = {"virtainers-scratch-file", "virtainers-scratch-damaged"}
        assert {each.name for each in temp.iterdir()} == {*others, *files, Path(ours).name}


def test_a_pid_that_another_process_has_now_keeps_nothing(temp: Path) -> None:
    left = left_behind()
    give(left, pid=str(os.getpid()))
    scratch.sweep()
    assert not left.exists()


def test_a_pid_of_another_namespace_says_nothing(temp: Path) -> None:
    left = left_behind()
    give(left, host=json.loads((left / ".owner.json").read_text())["virtainers.owner-host"] + "0")
    scratch.sweep()
    assert left.exists()


def test_what_another_user_has_left_is_not_ours_to_sweep(temp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = left_behind()
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: left.stat().st_uid + 1)
        scratch.sweep()
    assert left.exists()


def test_a_folder_that_others_may_write_is_not_read(temp: Path) -> None:
    left = left_behind()
    left.chmod(0o777)
    scratch.sweep()
    assert left.exists()


def test_two_may_sweep_at_the_same_time(temp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = [left_behind(), left_behind()]

    def dies_while_another_process_sweeps(_found: Any) -> bool:
        for each in left:
            shutil.rmtree(each, ignore_errors=True)
        return True

    monkeypatch.setattr(ownership, "is_dead", dies_while_another_process_sweeps)
    scratch.sweep()
    assert not list(temp.iterdir())
