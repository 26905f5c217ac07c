"""VMs outside of tests: a Python program, and the command line."""

import subprocess
import sys
import time

import pytest

from pytest_virtainers.engine.docker.engine import DockerEngine

PROGRAM = """
import sys
import time
import pytest_virtainers as virtainers

with virtainers.launch("debian-13", name="alone", ram="512M", disk="3G", cpus=2) as vm:
    print(vm.run("hostname; nproc").stdout.split(), "pytest" in sys.modules)
    raise LookupError("in the block")
"""


def gone(engine: DockerEngine, name: str) -> bool:
    return not engine.api.containers(all=True, filters={"label": f"virtainers.vm={name}"})


def test_a_program_has_a_vm_for_a_block(engine: DockerEngine) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, timeout=300)
    assert done.stdout == "['alone', '2'] False\n", done.stderr
    assert done.stderr.splitlines()[-1] == "LookupError: in the block"
    assert gone(engine, "alone")


IN_TURN = """
import pytest_virtainers as virtainers
from pytest_virtainers.engine.docker.engine import Client

networks = []
create_network = Client.create_network
Client.create_network = lambda self, name, **given: networks.append(name) or create_network(self, name, **given)
for name in ("first", "second"):
    with virtainers.launch("debian-13", name=name, ram="512M", disk="3G", cpus=2) as vm:
        print(vm.run("hostname").stdout.strip(), [each.name for each in vm.network.vms], len(networks))
"""


def test_a_program_has_vms_in_turn_on_what_the_first_has_found(engine: DockerEngine) -> None:
    done = subprocess.run([sys.executable, "-c", IN_TURN], capture_output=True, text=True, check=False, timeout=300)
    assert done.stdout == "first ['first'] 1\nsecond ['second'] 1\n", done.stderr
    assert done.stderr == ""
    assert gone(engine, "second")


def test_run_gives_the_commands_output_and_exit_code(engine: DockerEngine) -> None:
    script = 'echo "$1" "$(hostname)"; exit 7'
    options = ["--name", "once", "--ram", "512M", "--disk", "3G", "--cpus", "2"]
    command = [sys.executable, "-m", "pytest_virtainers.cli", "run", *options, "--", "sh", "-c", script, "-", "a  b"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, stdin=subprocess.DEVNULL)
    assert (done.stdout, done.returncode) == ("a  b once\n", 7), done.stderr
    assert "virtainers: once (debian-13) is at " in done.stderr
    assert gone(engine, "once")


BEFORE_THE_START = """
import os
import signal
import sys
import pytest_virtainers as virtainers
from pytest_virtainers.engine.base import Container

start = Container.start


def killed(self):
    if sys.argv[1] == "helper" or "-store-" not in self.name:
        os.kill(os.getpid(), signal.SIGKILL)
    start(self)


Container.start = killed
with virtainers.launch("debian-13", name="early", ram="512M", disk="3G", cpus=2):
    pass
"""


@pytest.mark.parametrize("kind", ["helper", "vm"])
def test_a_program_that_is_killed_before_a_container_starts_leaves_nothing(engine: DockerEngine, kind: str) -> None:
    with subprocess.Popen([sys.executable, "-c", BEFORE_THE_START, kind]) as program:
        of_it = {"label": [f"virtainers.owner-pid={program.pid}"]}
        program.wait(300)
        assert program.returncode == -9
    (created,) = engine.api.containers(all=True, filters=of_it)
    assert created["State"] == "created", "else this proves nothing"
    deadline = time.monotonic() + 5
    while left := [
        *engine.api.containers(all=True, filters=of_it),
        *engine.api.networks(filters=of_it),
        *engine.api.volumes(filters=of_it)["Volumes"],
    ]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def test_a_program_that_is_killed_leaves_no_container(engine: DockerEngine) -> None:
    waits = PROGRAM.replace('raise LookupError("in the block")', "sys.stdout.flush(); input()").replace(
        "alone", "slain"
    )
    with subprocess.Popen([sys.executable, "-c", waits], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
        assert program.stdout
        assert b"slain" in program.stdout.readline()
        assert not gone(engine, "slain")
        program.kill()
    deadline = time.monotonic() + 20
    while not gone(engine, "slain"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
