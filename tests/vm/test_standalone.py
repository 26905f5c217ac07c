"""VMs outside of tests: a Python program, and the command line."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pytest_virtainers.engine.docker.engine import DockerEngine

PROGRAM = """
import sys
import time
import pytest_virtainers as virtainers

with virtainers.launch("debian-13", name="by-itself", ram="512M", disk="3G", cpus=2) as vm:
    print(vm.run("hostname; nproc").stdout.split(), "pytest" in sys.modules)
    raise LookupError("in the block")
"""


def is_removed(engine: DockerEngine, name: str) -> bool:
    """Return whether no VM has this name, which other tests on this engine do not use."""
    return not engine.api.containers(all=True, filters={"label": f"virtainers.vm={name}"})


def test_launch_ends_the_vm_with_its_block(engine: DockerEngine) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, timeout=600)
    assert done.stdout == "['by-itself', '2'] False\n", done.stderr
    assert done.stderr.splitlines()[-1] == "LookupError: in the block"
    assert is_removed(engine, "by-itself")


IN_TURN = """
import pytest_virtainers as virtainers
from pytest_virtainers.engine.docker.engine import Client

networks = []
create_network = Client.create_network
Client.create_network = lambda self, name, **given: networks.append(name) or create_network(self, name, **given)
for name in ("turn-1", "turn-2"):
    with virtainers.launch("debian-13", name=name, ram="512M", disk="3G", cpus=2) as vm:
        print(vm.run("hostname").stdout.strip(), [each.name for each in vm.network.vms], len(networks))
"""


def test_later_blocks_reuse_what_the_first_has_found(engine: DockerEngine) -> None:
    done = subprocess.run([sys.executable, "-c", IN_TURN], capture_output=True, text=True, check=False, timeout=600)
    assert done.stdout == "turn-1 ['turn-1'] 1\nturn-2 ['turn-2'] 1\n", done.stderr
    assert done.stderr == ""
    assert is_removed(engine, "turn-2")


def test_run_returns_the_output_and_exit_code_of_the_command(engine: DockerEngine) -> None:
    script = 'echo "$1" "$(hostname)"; exit 7'
    options = ["--name", "once", "--ram", "512M", "--disk", "3G", "--cpus", "2"]
    command = [sys.executable, "-m", "pytest_virtainers.cli", "run", *options, "--", "sh", "-c", script, "-", "a  b"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, stdin=subprocess.DEVNULL)
    assert (done.stdout, done.returncode) == ("a  b once\n", 7), done.stderr
    assert "virtainers: once (debian-13) is at " in done.stderr
    assert is_removed(engine, "once")


def test_run_sets_a_vm_up_as_the_marker_does(engine: DockerEngine, tmp_path: Path) -> None:
    (tmp_path / "greeting").write_text("from a file\n")
    options = ["--name", "set-up", "--ram", "512M", "--disk", "3G", "--cpus", "2"]
    options += ["--network", "name=front", "--ip", "9", "--nic", "name=lab,ip=11"]
    made_by = "tr a-z A-Z </srv/greeting >/srv/made"
    options += ["--file", f"{tmp_path}/greeting:/srv/greeting", "--run-command", made_by]
    script = "cat /srv/made; hostname -I"
    command = [sys.executable, "-m", "pytest_virtainers.cli", "run", *options, "--", "sh", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, stdin=subprocess.DEVNULL)
    made, addresses = done.stdout.splitlines()
    assert made == "FROM A FILE", done.stderr
    assert any(each.endswith(".11") for each in addresses.split()), addresses
    assert re.search(r"set-up \(debian-13\) is at [0-9.]+\.9;", done.stderr), done.stderr
    assert is_removed(engine, "set-up")


BEFORE_THE_START = """
import sys
import time
import pytest_virtainers as virtainers
from pytest_virtainers.engine.docker.container import DockerContainer

start = DockerContainer.start


def waits(self):
    if sys.argv[1] == "helper" or "-store-" not in self.name:
        print("created", flush=True)
        time.sleep(600)
    start(self)


DockerContainer.start = waits
with virtainers.launch("debian-13", name="early", ram="512M", disk="3G", cpus=2):
    pass
"""


@pytest.mark.parametrize("kind", ["helper", "vm"])
def test_a_program_that_is_killed_before_a_container_starts_leaves_nothing(engine: DockerEngine, kind: str) -> None:
    with subprocess.Popen([sys.executable, "-c", BEFORE_THE_START, kind], stdout=subprocess.PIPE) as program:
        of_it = {"label": [f"virtainers.owner-pid={program.pid}"]}
        assert program.stdout
        assert program.stdout.readline() == b"created\n"
        there = [each["State"] for each in engine.api.containers(all=True, filters=of_it)]
        program.kill()
    assert there == ["created"], "otherwise this proves nothing"
    deadline = time.monotonic() + 60  # without a reaper it would stay; test_ending.py measures the seconds
    while left := [
        *engine.api.containers(all=True, filters=of_it),
        *engine.api.networks(filters=of_it),
        *engine.api.volumes(filters=of_it)["Volumes"],
    ]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def test_a_program_that_is_killed_leaves_no_container(engine: DockerEngine) -> None:
    waits = PROGRAM.replace('raise LookupError("in the block")', "sys.stdout.flush(); input()").replace(
        "by-itself", "killed-program"
    )
    with subprocess.Popen([sys.executable, "-c", waits], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
        assert program.stdout
        assert b"killed-program" in program.stdout.readline()
        assert not is_removed(engine, "killed-program")
        program.kill()
    deadline = time.monotonic() + 60
    while not is_removed(engine, "killed-program"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
