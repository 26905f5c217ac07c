"""A forked child, whatever it does, changes nothing of its parent's VM."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pytest_virtainers.engine.docker.engine import DockerEngine

PROGRAM = """
import contextlib
import multiprocessing
import os
import sys
import threading
import time

import pytest_virtainers as virtainers


def forked(act):
    print(end="", flush=True)
    child = os.fork()
    if child == 0:
        act()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def refused(act):
    try:
        act()
    except virtainers.VirtainerError as error:
        print(str(error).replace(str(os.getppid()), "PARENT").replace(str(os.getpid()), "CHILD"), flush=True)


def fail():
    raise LookupError("in the child")


with virtainers.launch("debian-13", name="forking", ram="512M", disk="3G", cpus=2) as vm:
    vm.run("true")
    ways = {"exception": fail, "exit": lambda: sys.exit(3), "_exit": lambda: os._exit(4)}
    for name, leave in ways.items():
        print(name, forked(leave), vm.run("echo on").stdout.strip())
    uses = {
        "run": lambda: vm.run("true"),
        "get": lambda: vm.get("/etc/hostname", "hostname"),
        "close": lambda: vm.machine.close(),
        "snapshot": lambda: vm.snapshot(),
        "popen": lambda: vm.popen("true"),
    }
    for name, use in uses.items():
        print(name, end=" ")
        print(forked(lambda: refused(use)), vm.run("echo on").stdout.strip())
    print("process", end=" ", flush=True)
    worker = multiprocessing.get_context("fork").Process(target=refused, args=(lambda: vm.run("true"),))
    worker.start()
    worker.join()
    print(worker.exitcode, vm.run("echo on").stdout.strip())

    said = []
    running = threading.Thread(target=lambda: said.append(vm.run("sleep 3; echo done").stdout.strip()))
    running.start()
    time.sleep(1)

    def meddle():
        for use in uses.values():
            with contextlib.suppress(virtainers.VirtainerError):
                use()
        sys.exit(5)

    print("meddle", forked(meddle))
    running.join()
    print(*said)

    lives = os.fork()
    if lives == 0:
        time.sleep(300)
    print("lives", lives, flush=True)
    vm.run("sleep 300")
"""
REFUSAL = (
    "forking: this VM belongs to process PARENT; its forked child CHILD cannot use it. "
    "Use a thread, or open a new session with vm.access.ssh_command."
)
SAID = f"""\
exception 1 on
exit 3 on
_exit 4 on
run {REFUSAL}
0 on
get {REFUSAL}
0 on
close {REFUSAL}
0 on
snapshot {REFUSAL}
0 on
popen {REFUSAL}
0 on
process {REFUSAL}
0 on
meddle 5
done
"""


def test_a_forked_child_changes_nothing_and_does_not_keep_the_vm_alive(engine: DockerEngine, tmp_path: Path) -> None:
    errors = tmp_path / "errors"
    with (
        errors.open("wb") as said,
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=said, text=True, cwd=tmp_path
        ) as program,
    ):
        assert program.stdout
        of_it = {"label": ["virtainers=vm", f"virtainers.owner-pid={program.pid}"]}
        lines = []
        for line in program.stdout:
            lines.append(line)
            if line.startswith("lives"):
                break
        child = int(lines.pop().split()[1])
        assert "".join(lines) == SAID, errors.read_text()
        assert len(engine.api.containers(filters=of_it)) == 1
        program.kill()
        program.wait()
        deadline = time.monotonic() + 60  # the child lives for 300
        while left := [
            *engine.api.containers(all=True, filters=of_it),
            *engine.api.networks(filters=of_it),
            *engine.api.volumes(filters=of_it)["Volumes"],
        ]:
            assert time.monotonic() < deadline, left
            time.sleep(0.1)
        os.kill(child, signal.SIGKILL)  # the child was still alive
    assert errors.read_text().count("LookupError: in the child") == 1
    assert not (tmp_path / "hostname").exists()


TESTS = """
import os
import sys

import pytest

pytestmark = pytest.mark.virtainer(ram="512M", disk="3G", cpus=2)


def test_fork(vm):
    vm.access.ssh_command
    child = os.fork()
    if child == 0:
        sys.exit("the child continues with the rest of the session")
    os.waitpid(child, 0)
    assert vm.run("echo on").stdout == "on\\n"
    open(vm.access.ssh_config()).read()


def test_next(vm):
    vm.run("true")
    open("passed", "w").close()
"""


def test_a_child_that_continues_the_test_session_ends_nothing(pytester: pytest.Pytester, runtime_image: str) -> None:
    pytester.makepyfile(TESTS)
    options = ["-p", "no:cacheprovider", "--virtainer-keep", "failed"]
    ran = pytester.runpytest_subprocess(*options)
    assert ran.ret == 0
    assert (pytester.path / "passed").exists()
    ran.stdout.fnmatch_lines(["*this launcher belongs to process *; its forked child * cannot use it.*"])
    assert ran.outlines[-1].strip("= ").startswith("2 passed")
