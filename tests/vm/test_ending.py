"""However a pytest run ends, nothing of it remains on the engine."""

import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_virtainers.config.settings import Settings
from pytest_virtainers.config.spec import merge
from pytest_virtainers.engine.docker.engine import DockerEngine
from pytest_virtainers.guests.images import GuestImage
from pytest_virtainers.launching.launcher import Launcher
from tests.vm.processes import is_booting, reaper_of, removal_seconds
from tests.vm.terminal import AT_TERMINAL

pytestmark = [pytest.mark.alone, pytest.mark.each_engine]

BOOTING = """
import pytest

# A shape that no earlier run has left a template of, and that no other template can become: it has to boot.
@pytest.mark.virtainer("{name}", user_data={{"final_message": "{unique}"}})
def test_boot(vm): pass
"""
RUNNING = """
import pathlib, time, pytest

@pytest.mark.virtainer("{name}")
def test_sleep(vm):
    pathlib.Path("ready").touch()
    time.sleep(600)
"""


class Run:
    """A pytest run as a child process, and its objects on the engine."""

    def __init__(
        self, pytester: pytest.Pytester, engine: DockerEngine, source: str, name: str, options: tuple[str, ...] = ()
    ) -> None:
        pytester.makepyfile(source.format(name=name, unique=time.time_ns()))
        self.ready = pytester.path / "ready"
        self.log = pytester.path / "log"
        self._engine, self._api = engine, engine.api
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*AT_TERMINAL, sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options],
                cwd=pytester.path,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def containers(self) -> list[dict[str, Any]]:
        """All of its containers: VMs, and the helper that has the store open while a template is made."""
        found: list[dict[str, Any]] = self._api.containers(all=True, filters={"label": self._owner})
        return found

    def networks(self) -> list[str]:
        return [each["Name"] for each in self._api.networks(filters={"label": self._owner})]

    @property
    def _owner(self) -> str:
        return f"virtainers.owner-pid={self.process.pid}"

    def wait_for(self, condition: Callable[[], object], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    def until_booting(self) -> None:
        self.wait_for(lambda: is_booting(self._engine, self.process.pid), 300)
        assert len(self.containers()) == 2, "a VM, and the store's helper"

    def until_running(self) -> None:
        self.wait_for(self.ready.exists, 600)


@pytest.fixture
def start(
    pytester: pytest.Pytester, engine: DockerEngine, runtime_image: str, guest_image: GuestImage
) -> Iterator[Callable[..., Run]]:
    runs = []

    def start(source: str, name: str, *options: str) -> Run:
        runs.append(Run(pytester, engine, source, name, options))
        return runs[-1]

    yield start
    for run in runs:
        run.process.kill()
        run.process.wait()


@pytest.mark.parametrize(("stage", "name"), [("booting", "killed-in-boot"), ("running", "killed-in-test")])
def test_after_sigkill_nothing_is_left(
    start: Callable[..., Run], engine: DockerEngine, stage: str, name: str
) -> None:
    run = start(BOOTING if stage == "booting" else RUNNING, name)
    run.until_booting() if stage == "booting" else run.until_running()
    assert run.networks(), "otherwise this proves nothing"
    run.process.kill()
    run.process.wait()
    deadline = time.monotonic() + removal_seconds(engine)
    while (run.containers() or run.networks()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert (run.containers(), run.networks()) == ([], [])


def test_the_next_run_removes_what_is_left_without_a_reaper(start: Callable[..., Run], engine: DockerEngine) -> None:
    run = start(RUNNING, "killed-with-all")
    run.until_running()
    os.kill(reaper_of(run.process.pid), signal.SIGKILL)
    run.process.kill()
    run.process.wait()
    deadline = time.monotonic() + removal_seconds(engine)
    while run.containers() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert run.containers() == [], "by its lease"
    assert run.networks(), "otherwise this proves nothing"
    assert set(run.networks()) <= set(engine.sweep()), "what the next run does first"
    assert run.networks() == []


CLONES = """
import pytest_virtainers as virtainers
from pytest_virtainers.engine.docker.engine import DockerEngine

DockerEngine.sweep = lambda _engine: []  # it would remove what the one before has left
print("go", flush=True)
while True:
    with virtainers.launch("debian-13", name="killed", ram="512M", disk="3G", cpus=2) as vm:
        vm.run("true")
        print("ready", flush=True)
"""


def owned(engine: DockerEngine) -> dict[str, int]:
    """Return all objects of runs on the engine, by name, with the process ids of their owners."""
    api, ours = engine.api, {"label": ["virtainers"]}
    found = {
        **{each["Names"][0]: each["Labels"] for each in api.containers(all=True, filters=ours)},
        **{
            each["Name"]: each["Labels"]
            for each in (*api.networks(filters=ours), *api.volumes(filters=ours)["Volumes"])
        },
    }
    return {name: int(labels["virtainers.owner-pid"]) for name, labels in found.items()}


def test_five_seconds_after_a_kill_at_any_moment_nothing_is_left(
    launcher: Launcher, engine: DockerEngine, settings: Settings
) -> None:
    """`KILLS=100` for a long run."""
    spec = merge(settings.shape, {"ram": 512, "disk": 3 * 1024, "cpus": 2, "template": True})
    launcher.discard(launcher.launch(spec))  # there is a template
    killed: dict[int, tuple[float, str]] = {}  # when everything must be removed, and the progress of the launch
    left: list[tuple[str, str]] = []
    had: list[str] = []

    def look() -> None:
        began, found = time.monotonic(), owned(engine)
        had.extend(name for name, owner in found.items() if owner == program.pid)
        for pid, (end, moment) in list(killed.items()):
            if began > end:
                del killed[pid]
                left.extend((name, moment) for name, owner in found.items() if owner == pid)

    longest = 0.0  # the duration of a whole launch
    for number in range(int(os.environ.get("KILLS", "12"))):
        moment = random.uniform(0, longest)  # noqa: S311
        with subprocess.Popen([sys.executable, "-c", CLONES], stdout=subprocess.PIPE) as program:
            assert program.stdout
            assert program.stdout.readline() == b"go\n"
            if not number:
                began = time.monotonic()
                assert program.stdout.readline() == b"ready\n"
                longest = time.monotonic() - began
            time.sleep(moment)
            program.kill()
        end = time.monotonic()
        look()  # at once, before the reaper has finished
        killed[program.pid] = end + removal_seconds(engine), f"kill {number}, after {moment:.3f} s"
    time.sleep(max(0.0, max(end for end, _ in killed.values()) - time.monotonic()) + 0.1)
    look()
    assert not killed
    assert [name for name in had if name.endswith("-default")], "otherwise this proves nothing"
    assert left == []


SEVERAL = """
import pytest

pytestmark = [pytest.mark.virtainer(name) for name in ("one", "two", "three")]

@pytest.mark.parametrize("number", range(COUNT))
def test_partition(vms, virtainer_network, number):
    with open("runs", "a") as file:
        print(virtainer_network.engine_name.removesuffix("-default"), file=file)
    one, two, three = (vms[name] for name in ("one", "two", "three"))
    one.run("ping -c1 -W30 three", sudo=True)
    with virtainer_network.partition({one, two}, three):
        assert not one.run(["ping", "-c1", "-W1", three.ip], sudo=True, check=False)
        assert not three.run(["ping", "-c1", "-W1", two.ip], sudo=True, check=False)
        one.run(["ping", "-c1", "-W30", two.ip], sudo=True)
    three.run("ping -c1 -W30 two", sudo=True)
"""


def test_partitions_of_several_machines_in_two_workers_leave_nothing(
    pytester: pytest.Pytester, engine: DockerEngine, runtime_image: str
) -> None:
    """`PARTITIONS=20` for a long run."""
    count = int(os.environ.get("PARTITIONS", "4"))
    pytester.makepyfile(SEVERAL.replace("COUNT", str(count)))
    pytester.runpytest_subprocess("-n", "2", "-p", "no:cacheprovider").assert_outcomes(passed=count)
    runs = {*(pytester.path / "runs").read_text().split()}
    assert len(runs) == 2, "two workers"
    api = engine.api
    left = [
        *(name for each in api.containers(all=True) for name in each["Names"]),
        *(each["Name"] for each in (*api.networks(), *api.volumes()["Volumes"])),
    ]
    assert not [name for name in left for run in runs if run in name]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_the_main_process(
    start: Callable[..., Run], engine: DockerEngine, number: signal.Signals
) -> None:
    name = f"worker-{number.name.lower()}"
    run = start(RUNNING, name, "-n", "2")
    run.until_running()
    labels = {"label": [f"virtainers.vm={name}"]}
    (found,) = engine.api.containers(filters=labels)
    of_the_run = {"label": [f"virtainers.run={found['Labels']['virtainers.run']}"]}
    run.process.send_signal(number)
    run.process.wait(30)  # in the test, it would sleep for ten minutes
    deadline = time.monotonic() + removal_seconds(engine)
    while left := [*engine.api.containers(all=True, filters=labels), *engine.api.networks(filters=of_the_run)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("number", "code", "name"), [(signal.SIGINT, 2, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_during_boot_cleans_up_at_once(
    start: Callable[..., Run], number: signal.Signals, code: int, name: str, launcher: Launcher
) -> None:
    run = start(BOOTING, name)
    run.until_booting()
    (vm,) = (each["Id"] for each in run.containers() if each["Labels"]["virtainers"] == "vm")
    environment = launcher.engine.adopt(vm).environment
    with launcher.store.open() as opened:
        assert "ram" in opened.shell(f"ls {environment['IMAGE_DIR']}").split(), "half-made"
    run.process.send_signal(number)
    assert run.process.wait(60) == code, run.log.read_text()
    assert run.containers() == []
    assert run.networks() == []
    with launcher.store.open() as opened:
        opened.shell(f"! ls -d {environment['IMAGE_DIR']}")


def test_ctrl_c_twice_leaves_nothing(start: Callable[..., Run], engine: DockerEngine) -> None:
    run = start(BOOTING, "interrupted-twice")
    run.until_booting()
    run.process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    run.process.send_signal(signal.SIGINT)  # during the cleanup
    run.process.wait(60)
    deadline = time.monotonic() + removal_seconds(engine)
    while (run.containers() or run.networks()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert (run.containers(), run.networks()) == ([], []), run.log.read_text()


@pytest.mark.thorough
def test_a_waiting_process_continues_for_a_killed_builder(
    pytester: pytest.Pytester, start: Callable[..., Run], engine: DockerEngine
) -> None:
    killed = start(BOOTING, "built-by-two")
    killed.until_booting()
    with (pytester.path / "second").open("wb") as log:
        follows = subprocess.Popen(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"], cwd=pytester.path, stdout=log, stderr=log
        )
    time.sleep(5)
    killed.process.kill()
    killed.process.wait()
    assert follows.wait(600) == 0, (pytester.path / "second").read_text()
    assert killed.containers() == []


def test_an_ended_run_leaves_no_files(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without a boot: the engine's connection, the store's helper and the locks are what could leave something.
    pytester.makepyfile("import pytest\n@pytest.mark.virtainer(ram='900000G')\ndef test_x(vm): pass")
    with tempfile.TemporaryDirectory() as folder:  # a short path, as sockets need it
        monkeypatch.setenv("TMPDIR", folder)
        pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(errors=1)
        assert list(Path(folder).glob("virtainers-*")) == []


def test_many_clones_leave_nothing(
    launcher: Launcher, engine: DockerEngine, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`CYCLES=200` for a long run."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # no run on another engine writes there
    spec = merge(settings.shape, {"ram": 512, "disk": 3 * 1024, "cpus": 2, "template": True})

    def present() -> dict[str, object]:
        api = engine.api
        with launcher.store.open() as opened:
            store = opened.shell("find /store -mindepth 2 -maxdepth 3 | sort")
        return {
            "containers": {each["Id"] for each in api.containers(all=True)},
            "networks": {each["Id"] for each in api.networks()},
            "volumes": {each["Name"] for each in api.volumes()["Volumes"]},
            "threads": threading.active_count(),
            "temporary files": len(list(tmp_path.iterdir())),
            "store": store,
        }

    for _ in range(2):  # the first cycles make the template, the network and the threads that remain
        launcher.discard(launcher.launch(spec))
    deadline = time.monotonic() + 300  # until the background check has read what the clones were started from
    while engine.api.containers(all=True, filters={"label": ["virtainers=helper"]}) and time.monotonic() < deadline:
        time.sleep(0.5)
    before, descriptors = present(), len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(int(os.environ.get("CYCLES", "5"))):
        vm = launcher.launch(spec)
        assert vm.access.ssh_command
        vm.run("true")
        launcher.discard(vm)
    deadline = time.monotonic() + 30
    while (after := present()) != before and time.monotonic() < deadline:
        time.sleep(1)
    assert after == before
    # The engine's client keeps a few idle connections; losing a descriptor in each cycle would exceed that.
    assert len(list(Path("/proc/self/fd").iterdir())) <= descriptors + 3
