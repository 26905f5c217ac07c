import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_virtainers.engine import ownership


def test_this_process_is_alive() -> None:
    assert not ownership.is_dead(ownership.labels("vm", "run"))


def test_an_ended_process_is_dead_even_if_its_pid_is_reused() -> None:
    child = subprocess.run(
        [sys.executable, "-c", "import json; from pytest_virtainers.engine import ownership\n"
         "print(json.dumps(ownership.labels('vm', 'run')))"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    labels = json.loads(child.stdout)
    assert ownership.is_dead(labels)
    reused = {**labels, "virtainers.owner-pid": str(os.getpid())}
    assert ownership.is_dead(reused), "same pid, other start time"


def test_a_zombie_is_dead() -> None:
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE) as child:
        labels = {
            **ownership.labels("vm", "run"),
            "virtainers.owner-pid": str(child.pid),
            "virtainers.owner-started": ownership.start_time(child.pid) or "",
        }
        assert not ownership.is_dead(labels)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie
        assert ownership.is_dead(labels)


def test_owners_of_an_earlier_boot_are_dead() -> None:
    assert ownership.is_dead({**ownership.labels("vm", "run"), "virtainers.owner-boot": "another"})


def test_in_doubt_the_owner_is_alive() -> None:
    mine = ownership.labels("vm", "run")
    assert not ownership.is_dead({**mine, "virtainers.owner-host": "elsewhere/1", "virtainers.owner-boot": "another"})
    host = mine["virtainers.owner-host"].partition("/")[0]
    assert not ownership.is_dead({**mine, "virtainers.owner-host": f"{host}/1", "virtainers.owner-pid": "999999999"})
    assert not ownership.is_dead({})


def test_without_proc_an_existing_process_is_alive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ownership, "_PROC", tmp_path)
    mine = ownership.labels("vm", "run")
    assert not ownership.is_dead(mine)
    assert ownership.is_dead({**mine, "virtainers.owner-pid": "999999999"})


def test_an_unknown_boot_is_not_another_boot(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = ownership.labels("vm", "run")
    monkeypatch.setattr(ownership, "_boot_id", lambda: "")
    assert not ownership.is_dead(mine)


@pytest.mark.parametrize("refusal", [FileNotFoundError, PermissionError, ProcessLookupError])
def test_a_hidden_process_of_another_user_is_alive(monkeypatch: pytest.MonkeyPatch, refusal: type[OSError]) -> None:
    mine = ownership.labels("vm", "run")

    def refuse(*_: object) -> str:
        raise refusal

    monkeypatch.setattr(ownership, "_boot_id", lambda: mine["virtainers.owner-boot"])
    monkeypatch.setattr(Path, "read_text", refuse)
    assert not ownership.is_dead(mine)

    def forbid(_pid: int, _signal: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", forbid)
    assert not ownership.is_dead(mine)
