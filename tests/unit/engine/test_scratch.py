"""Private folders, and their removal after a process was killed."""

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
    """Return the folder of a process that was killed."""
    ended = subprocess.run([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True, check=False)
    left = Path(ended.stdout.strip())
    (left / "key").touch()
    return left


def give(folder: Path, **facts: str) -> None:
    """Change fields of a folder's owner."""
    file = folder / ".owner.json"
    said = json.loads(file.read_text())
    file.write_text(json.dumps({**said, **{f"virtainers.owner-{name}": value for name, value in facts.items()}}))


def test_a_folder_is_private_and_names_its_owner(temp: Path) -> None:
    with scratch.Folder("ssh") as name:
        folder = Path(name)
        assert folder.stat().st_mode & 0o777 == 0o700
        assert folder.name.startswith("virtainers-scratch-ssh-")
        assert json.loads((folder / ".owner.json").read_text())["virtainers.owner-pid"] == str(os.getpid())
        assert folder.parent == temp
    assert not folder.exists()


def test_sweep_removes_folders_of_killed_processes_only(temp: Path) -> None:
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


def test_a_reused_pid_keeps_no_folder(temp: Path) -> None:
    left = left_behind()
    give(left, pid=str(os.getpid()))
    scratch.sweep()
    assert not left.exists()


def test_a_pid_of_another_namespace_is_not_compared(temp: Path) -> None:
    left = left_behind()
    give(left, host=json.loads((left / ".owner.json").read_text())["virtainers.owner-host"] + "0")
    scratch.sweep()
    assert left.exists()


def test_sweep_leaves_folders_of_other_users(temp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = left_behind()
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: left.stat().st_uid + 1)
        scratch.sweep()
    assert left.exists()


def test_sweep_does_not_read_folders_that_others_can_write_to(temp: Path) -> None:
    left = left_behind()
    left.chmod(0o777)
    scratch.sweep()
    assert left.exists()


def test_concurrent_sweeps_do_not_fail(temp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = [left_behind(), left_behind()]

    def dies_while_another_process_sweeps(_found: Any) -> bool:
        for each in left:
            shutil.rmtree(each, ignore_errors=True)
        return True

    monkeypatch.setattr(ownership, "is_dead", dies_while_another_process_sweeps)
    scratch.sweep()
    assert not list(temp.iterdir())
