import json
import os
import subprocess
import sys

from pytest_virtainers.engine import owner


def test_this_process_lives() -> None:
    assert not owner.is_dead(owner.labels("vm", "run"))


def test_an_ended_process_is_dead_even_when_its_pid_is_used_again() -> None:
    child = subprocess.run(
        [sys.executable, "-c", "import json; from pytest_virtainers.engine import owner\n"
         "print(json.dumps(owner.labels('vm', 'run')))"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    labels = json.loads(child.stdout)
    assert owner.is_dead(labels)
    reused = {**labels, "virtainers.owner-pid": str(os.getpid())}
    assert owner.is_dead(reused), "same pid, other start time"


def test_what_another_boot_left_is_dead() -> None:
    assert owner.is_dead({**owner.labels("vm", "run"), "virtainers.owner-boot": "another"})


def test_in_doubt_the_owner_lives() -> None:
    mine = owner.labels("vm", "run")
    assert not owner.is_dead({**mine, "virtainers.owner-host": "elsewhere/1", "virtainers.owner-boot": "another"})
    host = mine["virtainers.owner-host"].partition("/")[0]
    assert not owner.is_dead({**mine, "virtainers.owner-host": f"{host}/1", "virtainers.owner-pid": "999999999"})
    assert not owner.is_dead({})
