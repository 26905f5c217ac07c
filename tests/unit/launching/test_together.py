"""Several VMs that start together: the outcome when one fails, or when the wait is interrupted."""

import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from pytest_virtainers.config.spec import Spec, merge
from pytest_virtainers.errors import BootTimeout, GuestStalled, QEMUCrashed, VMGone
from pytest_virtainers.launching.templates import Maker, Template
from tests.unit.launching.world import BASE, TEMPLATE, FakeMachine, World

SPECS = [merge(BASE, {"template": True, "name": name}) for name in ("one", "two", "three")]


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Restore Ctrl-C, which is ignored in tests that a shell runs in the background."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


def interrupt(when: threading.Barrier, *ready: threading.Event) -> None:
    """Send Ctrl-C to the main thread, once so many threads wait and these VMs are ready."""
    when.wait()
    for each in ready:
        assert each.wait(30)
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def test_all_are_returned_in_the_order_in_which_they_were_requested(world: World) -> None:
    together = threading.Barrier(3, timeout=30)
    world.fate = lambda _vm: together.wait()
    assert [vm.name for vm in world.launch_all(SPECS)] == ["one", "two", "three"]
    assert (world.failed.vms, world.ended()) == ([], set())


def test_when_some_fail_all_count_as_failed_and_all_failures_are_reported(world: World) -> None:
    def fate(machine: FakeMachine) -> None:
        if machine.name != "two":
            raise BootTimeout(f"{machine.name} is slow")

    world.fate = fate
    with pytest.raises(BootTimeout, match=r"^one is slow") as caught:
        world.launch_all(SPECS)
    assert caught.value.__notes__ == ["And: three is slow"]
    assert {vm.name for vm in world.failed.vms} == {"one", "two", "three"}
    world.failed.close()
    assert world.ended() == {"one", "two", "three"}


@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_start_ends_at_once_without_retries(world: World) -> None:
    two_hang, one_is_ready = threading.Barrier(3, timeout=30), threading.Event()

    def fate(machine: FakeMachine) -> None:
        if machine.name == "one":
            one_is_ready.set()
            return
        two_hang.wait()
        assert world.containers[machine.number - 1].gone.wait(30)
        raise VMGone("its container was closed")

    world.fate = fate
    with ThreadPoolExecutor(1) as threads:
        threads.submit(interrupt, two_hang, one_is_ready)
        with pytest.raises(KeyboardInterrupt):
            world.launch_all(SPECS)
    assert len(world.containers) == 3, "no retry after an interrupt"
    world.failed.close()
    assert world.ended() == {"one", "two", "three"}
    world.fate = lambda _vm: None
    assert len(world.launch_all(SPECS)) == 3, "the next VMs start as usual"


@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_wait_for_a_template_starts_nothing(world: World) -> None:
    waiting = threading.Barrier(4, timeout=30)

    def make(_spec: Spec, _maker: Maker) -> Template:
        if threading.current_thread() is not threading.main_thread():
            waiting.wait()
            deadline = time.monotonic() + 30
            while not world.starting_vms.is_stopped:
                assert time.monotonic() < deadline
                time.sleep(0.01)
        return TEMPLATE

    world.templates.make = make
    with ThreadPoolExecutor(1) as threads:
        threads.submit(interrupt, waiting)
        with pytest.raises(KeyboardInterrupt):
            world.launch_all(SPECS)
    assert world.containers == []


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (GuestStalled("it hangs"), "the kernel of one (debian-13) hung while it booted: booting again, once"),
        (QEMUCrashed("an assertion"), "QEMU of one (debian-13) crashed while it booted: booting again, once"),
    ],
)
def test_a_crash_of_an_emulated_vm_is_retried_once(error: Exception, message: str, world: World) -> None:
    failures = [error]

    def make(_spec: Spec, _maker: Maker) -> Template:
        if failures:
            raise failures.pop()
        return TEMPLATE

    world.templates.make = make
    assert world.launch(SPECS[0]).name == "one"
    assert world.notes == [f"virtainers: {message}\n"]
    failures += [error, error]
    with pytest.raises(type(error)):
        world.launch(SPECS[1])
