"""The failures of templates that a run remembers."""

from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from pytest_virtainers.config.settings import resolve
from pytest_virtainers.config.spec import Spec, merge
from pytest_virtainers.errors import BootTimeout, EngineError, GuestStalled, QEMUCrashed, TemplateError
from pytest_virtainers.guests.images import GuestImage
from pytest_virtainers.launching import templates as module
from pytest_virtainers.launching.once import Once
from pytest_virtainers.launching.templates import Templates
from pytest_virtainers.store.locks import SharedLocks
from pytest_virtainers.support.progress import SILENT
from pytest_virtainers.vm import saving

if TYPE_CHECKING:
    from pytest_virtainers.ssh.keys import Keys
    from pytest_virtainers.store.volume import OpenStore
    from pytest_virtainers.vm.vm import VM

SPEC, GUEST = merge(resolve([]).shape), GuestImage("debian-13-abc", "debian", "digest")


@pytest.fixture(autouse=True)
def no_guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(saving, "save", lambda *_: None)


class World:
    """A store without templates, and a guest whose boots raise `failures` in order."""

    def __init__(self, *failures: BaseException) -> None:
        self.failures = [*failures]
        self.boots = 0

    def boot(self, _spec: Spec, _keys: "Keys", _folder: str) -> "VM":
        self.boots += 1
        if self.failures:
            raise self.failures.pop(0)
        return cast("VM", SimpleNamespace(machine=SimpleNamespace(close=lambda: None)))

    def restore(self, *_: object) -> "VM":
        raise AssertionError("a plain template is booted")

    @contextmanager
    def store(self) -> Iterator["OpenStore"]:
        @contextmanager
        def new(_place: str) -> Iterator[str]:
            yield "/store/.scratch-1"

        container = SimpleNamespace(put=lambda *_: None)
        yield cast(
            "OpenStore",
            SimpleNamespace(manifest=lambda _place: None, recall=lambda _place: None, new=new, container=container),
        )

    def templates(self, once: Once) -> Templates:
        store = cast("Any", self.store)
        return Templates(store, holds=SharedLocks(), runtime_id=lambda: "runtime:1", progress=SILENT, once=once)


def test_a_failed_template_is_not_retried_and_its_first_failure_is_reported() -> None:
    world = World(BootTimeout("vm did not let us log in\nits console"))
    templates = world.templates(Once())
    with pytest.raises(BootTimeout):
        templates.ensure(SPEC, GUEST, world)
    for _ in range(3):
        with pytest.raises(TemplateError) as caught:
            templates.ensure(SPEC, GUEST, world)
        assert str(caught.value) == (
            "vm: its template could not be made in this run, and is not tried again. "
            "The first failure: BootTimeout: vm did not let us log in\nits console"
        )
    assert world.boots == 1
    templates.ensure(merge(resolve([]).shape, {"ram": 512}), GUEST, world)
    assert world.boots == 2, "another template is another matter"


def test_an_exception_of_prepare_is_a_failure() -> None:
    world = World(AssertionError("nginx is missing"))
    templates = world.templates(Once())
    with pytest.raises(AssertionError):
        templates.ensure(SPEC, GUEST, world)
    with pytest.raises(TemplateError, match="The first failure: AssertionError: nginx is missing"):
        templates.ensure(SPEC, GUEST, world)


@pytest.mark.parametrize(
    "passing",
    [
        KeyboardInterrupt(),
        pytest.fail.Exception("Timeout (>40.0s) from pytest-timeout."),
        pytest.skip.Exception("no network"),
        CancelledError(),
        EngineError("the daemon restarts"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_failures_of_other_causes_are_not_remembered(passing: BaseException) -> None:
    world = World(passing)
    templates = world.templates(Once())
    with pytest.raises(type(passing)):
        templates.ensure(SPEC, GUEST, world)
    templates.ensure(SPEC, GUEST, world)
    assert world.boots == 2


def test_an_interrupted_template_suggests_to_make_it_ahead() -> None:
    world = World(pytest.fail.Exception("Timeout (>40.0s)"))
    with pytest.raises(pytest.fail.Exception) as caught:
        world.templates(Once()).ensure(SPEC, GUEST, world)
    (note,) = caught.value.__notes__
    assert note.endswith("pytest --virtainer-warm")


@pytest.mark.parametrize("rare", [GuestStalled("it hangs"), QEMUCrashed("it crashed")])
def test_a_rare_crash_is_a_failure_the_second_time(rare: Exception) -> None:
    world = World(rare, rare)
    templates = world.templates(Once())
    for _ in range(2):
        with pytest.raises(type(rare)):
            templates.ensure(SPEC, GUEST, world)
    with pytest.raises(TemplateError):
        templates.ensure(SPEC, GUEST, world)
    assert world.boots == 2


@pytest.mark.parametrize(("run", "tried"), [("run-1", 1), ("run-2", 2), ("", 2)])
def test_processes_of_one_run_find_each_others_failures(run: str, tried: int) -> None:
    world = World(BootTimeout("slow"))
    with pytest.raises(BootTimeout):
        world.templates(Once("run-1")).ensure(SPEC, GUEST, world)
    with pytest.raises(TemplateError, match="BootTimeout: slow") if tried == 1 else nullcontext():
        world.templates(Once(run)).ensure(SPEC, GUEST, world)
    assert world.boots == tried


def test_a_waiting_process_does_not_repeat_the_failure_of_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = World(BootTimeout("slow")), World()

    def locked(*_: object) -> AbstractContextManager[object]:
        monkeypatch.setattr(module, "locked", lambda *_: nullcontext())
        with pytest.raises(BootTimeout):
            first.templates(Once("run-1")).ensure(SPEC, GUEST, first)
        return nullcontext()

    monkeypatch.setattr(module, "locked", locked)
    with pytest.raises(TemplateError, match="BootTimeout: slow"):
        second.templates(Once("run-1")).ensure(SPEC, GUEST, second)
    assert second.boots == 0
