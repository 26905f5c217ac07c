"""The memory that all VMs may take together; containers with a VM's labels stand for those of other processes."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from pytest_virtainers import BootTimeout, BudgetError, SpecError
from pytest_virtainers.config.settings import Settings
from pytest_virtainers.config.spec import Spec
from pytest_virtainers.engine.base import Container
from pytest_virtainers.engine.docker.engine import DockerEngine
from pytest_virtainers.engine.plan import Plan
from pytest_virtainers.launching import memory_budget
from pytest_virtainers.launching.build import build_launcher
from pytest_virtainers.launching.memory_budget import QEMU_MIB, Budget, cloned_mib
from pytest_virtainers.support.progress import SILENT
from tests.vm.shapes import spec

OURS, OTHERS = "ours", "theirs"
Start = Callable[..., Container]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Separate the VMs, and waiting for memory, from those of other tests and test runs."""
    for label in "MEMORY", "LIMIT":
        monkeypatch.setattr(memory_budget, label, f"{getattr(memory_budget, label)}-{time.monotonic_ns()}")
    monkeypatch.setattr(memory_budget, "_WAITING", f"tests-wait-{os.getpid()}")


@pytest.fixture
def start(engine: DockerEngine, runtime_image: str) -> Iterator[Start]:
    """Start a container that counts as a VM of `run_id`."""
    with contextlib.ExitStack() as stack:

        def start(run_id: str, least: int, most: int, *program: str) -> Container:
            labels = {memory_budget.MEMORY: str(least), memory_budget.LIMIT: str(most)}
            name = f"virtainers-budget-{time.monotonic_ns()}"
            plan = Plan(name=name, kind="vm", image=runtime_image, entrypoint=program or ("cat",), labels=labels)
            container = engine.create(plan, run_id)
            stack.callback(container.close)
            container.start()
            return container

        yield start


@contextlib.contextmanager
def room(engine: DockerEngine, limit_mib: int, wanted: Spec, patience: float = 0.0) -> Iterator[None]:
    with Budget(engine, lambda _whole: limit_mib, OURS, SILENT).room(
        wanted, cloned_mib(wanted), give_back=lambda: False, patience=patience
    ):
        yield


def test_what_can_never_fit_is_an_error_at_once(settings: Settings) -> None:
    small = replace(settings, max_ram=lambda _whole: 1024)
    with (
        build_launcher(small, SILENT) as launcher,
        pytest.raises(
            SpecError, match=rf"^big: ram=1024M and {QEMU_MIB}M for QEMU are more than all VMs together may use"
        ),
    ):
        launcher.launch(spec("big", ram=1024))


def test_memory_of_this_process_is_not_waited_for(engine: DockerEngine, start: Start) -> None:
    start(OURS, 900, 900)
    with (
        pytest.raises(
            BudgetError,
            match=r"^no memory for next: it needs 192 MiB, .* this process's take 900 MiB and others 0 MiB\. ",
        ),
        room(engine, 1000, spec("next"), patience=60),
    ):
        pass


def test_a_vm_waits_for_the_memory_of_others(engine: DockerEngine, start: Start) -> None:
    other = start(OTHERS, 900, 900)
    with (
        pytest.raises(BudgetError, match=r"others 900 MiB; waited 0 s for those\. End VMs"),
        room(engine, 1000, spec("next")),
    ):
        pass
    end = threading.Timer(1.5, other.close)
    began = time.monotonic()
    end.start()
    with room(engine, 1000, spec("next"), patience=60):
        assert time.monotonic() - began > 1
    end.join()


def test_a_clone_counts_with_what_it_uses(
    engine: DockerEngine, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = engine.api.info()
    if about.get("Rootless") and about.get("CgroupVersion") == "1":
        pytest.skip("a rootless engine cannot report it with cgroups of version 1")
    monkeypatch.setattr(memory_budget, "_TRUST_SECONDS", 0.0)  # new containers are measured, too
    start(OTHERS, 0, 64 * 1024)
    with room(engine, 1000, spec("next")):
        pass
    eater = start(
        OTHERS,
        *(0, 64 * 1024),
        *(
            "python3",
            "-c",
            "import sys; held = b'x' * (900 << 20); print('full', file=sys.stderr, flush=True); input()",
        ),
    )
    assert eater.stderr.wait_for(lambda: b"full" in bytes(eater.stderr), 120)
    with pytest.raises(BudgetError), room(engine, 1000, spec("next")):
        pass


def test_the_memory_of_a_local_container_is_read_at_once(engine: DockerEngine, start: Start) -> None:
    program = "import sys; held = b'x' * (300 << 20); print('full', file=sys.stderr, flush=True); input()"
    eater = start(OTHERS, 0, 64 * 1024, "python3", "-c", program)
    assert eater.stderr.wait_for(lambda: b"full" in bytes(eater.stderr), 120)
    if engine.memory_seen_mib(eater.id) is None:
        pytest.skip("this engine's control groups cannot be seen from here")
    began = time.monotonic()
    used = [engine.memory_used_mib(eater.id) for _ in range(5)]
    assert time.monotonic() - began < 4, "Docker's own statistics take a second each, and more on a busy host"
    assert all(300 <= each < 340 for each in used), used


def test_a_prefetched_vm_is_closed_for_another(settings: Settings, engine: DockerEngine) -> None:
    # 800 MiB: enough for a machine that boots (512 + 128), but not for a new clone (64 + 128) in addition.
    with build_launcher(replace(settings, max_ram=lambda _whole: 800), SILENT) as launcher:
        ahead = spec("in-the-way")
        launcher.discard(launcher.launch(ahead))  # this makes a template
        launcher.prefetch(ahead)
        while not engine.api.containers(filters={"label": ["virtainers.vm=in-the-way"]}):
            time.sleep(0.1)
        with pytest.raises(BootTimeout):  # it had enough memory, but too little time
            launcher.launch(spec("next", template=False, boot_timeout=3))
        assert not engine.api.containers(all=True, filters={"label": ["virtainers.vm=in-the-way"]})
