"""The prediction of the next VM, and the clone that is made for it in the background (here only a spec)."""

import threading
import time
from concurrent.futures import Future
from typing import Any, cast

import pytest

from pytest_virtainers.config.settings import resolve
from pytest_virtainers.config.spec import Spec, merge
from pytest_virtainers.errors import EngineError
from pytest_virtainers.launching.prefetch import Prefetcher
from pytest_virtainers.plugin.lookahead import next_spec

BASE = resolve([]).shape
SMALL, BIG = merge(BASE, {"ram": 512}), merge(BASE, {"ram": 2048})


class Machine:
    def __init__(self, spec: Spec, test: str) -> None:
        self.spec, self.test, self.alive, self.closed = spec, test, True, False
        self.cannot_end = False

    @property
    def machine(self) -> "Machine":
        """Return itself: here a VM is the same as its machine."""
        return self

    def close(self) -> None:
        self.closed = True
        if self.cannot_end:
            raise EngineError(f"removing container {self.test} failed")


class Made(list[Machine]):
    """The launched VMs; `launch` can be made to wait or to fail."""

    def __init__(self) -> None:
        super().__init__()
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.fails = False

    def want(self, prefetcher: Prefetcher, spec: Spec, test: str = "") -> None:
        prefetcher.want(spec, lambda: self.clone(spec, test))

    def wait_for(self, count: int) -> None:
        """Wait until so many were made."""
        deadline = time.monotonic() + 5
        while len(self) < count:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def clone(self, spec: Spec, node_id: str) -> Any:
        self.may_go_on.wait()
        if self.fails:
            return None
        self.append(Machine(spec, node_id))
        return self[-1]


@pytest.fixture
def made() -> Made:
    return Made()


@pytest.fixture
def prefetcher(made: Made) -> Any:
    prefetcher = Prefetcher()
    yield prefetcher
    prefetcher.close()
    assert all(machine.closed for machine in made), "none is left"


def test_a_vm_is_launched_once_and_claimed_once(prefetcher: Prefetcher, made: Made) -> None:
    made.want(prefetcher, SMALL, "a")
    made.want(prefetcher, SMALL, "b")
    assert prefetcher.claim(BIG) is None
    vm = cast("Any", prefetcher.claim(SMALL))
    assert [vm.test] == ["a"] == [each.test for each in made]
    assert prefetcher.claim(SMALL) is None
    vm.machine.close()


def test_claim_waits_for_a_vm_that_is_being_launched(prefetcher: Prefetcher, made: Made) -> None:
    made.may_go_on.clear()
    made.want(prefetcher, SMALL)
    threading.Timer(0.1, made.may_go_on.set).start()
    vm = prefetcher.claim(SMALL)
    assert vm is not None
    vm.machine.close()


def test_a_vm_that_no_test_needs_is_closed(prefetcher: Prefetcher, made: Made) -> None:
    made.want(prefetcher, SMALL)
    made.want(prefetcher, BIG)
    vm = cast("Any", prefetcher.claim(BIG))
    assert [each.closed for each in made] == [True, False]
    vm.machine.close()
    made.want(prefetcher, SMALL)
    prefetcher.want(None)
    assert prefetcher.claim(SMALL) is None


def test_a_vm_that_died_while_it_waited_is_not_claimed(prefetcher: Prefetcher, made: Made) -> None:
    made.want(prefetcher, SMALL)
    made.wait_for(1)
    made[0].alive = False
    assert prefetcher.claim(SMALL) is None


def test_a_failed_launch_is_not_retried(prefetcher: Prefetcher, made: Made) -> None:
    made.fails = True
    made.want(prefetcher, SMALL)
    made.fails = False
    made.want(prefetcher, SMALL)
    assert prefetcher.claim(SMALL) is None
    made.want(prefetcher, SMALL)
    vm = prefetcher.claim(SMALL)
    assert vm is not None
    vm.machine.close()


def test_a_vm_that_cannot_be_closed_is_reported_at_the_end(made: Made) -> None:
    prefetcher = Prefetcher()
    for count, spec in enumerate((SMALL, BIG), start=1):
        made.want(prefetcher, spec, spec.name)
        made.wait_for(count)
        made[-1].cannot_end, made[-1].alive = True, False
    assert prefetcher.claim(BIG) is None
    made.want(prefetcher, SMALL)
    vm = cast("Any", prefetcher.claim(SMALL))
    assert vm is made[-1]
    vm.machine.close()
    with pytest.raises(EngineError, match="removing container"):
        prefetcher.close()


def test_an_interrupted_claim_leaves_the_vm_to_be_closed(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_machine: object) -> None:
        raise KeyboardInterrupt

    prefetcher = Prefetcher()
    made.want(prefetcher, SMALL)
    made.wait_for(1)
    with monkeypatch.context() as patch:
        patch.setattr(Future, "result", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prefetcher.claim(SMALL)
    assert not made[0].closed
    prefetcher.close()
    assert made[0].closed


def test_memory_is_given_back(prefetcher: Prefetcher, made: Made) -> None:
    assert not prefetcher.give_back()
    made.want(prefetcher, SMALL)
    assert prefetcher.give_back()
    assert made[0].closed


SUITE = """
    import pytest

    def test_first(vm): pass
    def test_without(): pass
    @pytest.mark.skip
    @pytest.mark.virtainer(ram=2048)
    def test_skipped(vm): pass
    @pytest.mark.skipif(True, reason="so")
    @pytest.mark.virtainer(ram=2048)
    def test_skipped_if(vm): pass
    @pytest.mark.xfail(run=False)
    @pytest.mark.virtainer(ram=2048)
    def test_not_run(vm): pass
    @pytest.mark.skipif(False, reason="so")
    @pytest.mark.virtainer(ram=512)
    def test_next(vm): pass
    @pytest.mark.virtainer(ram=3072, scope="module")
    def test_shared(vm): pass
    def test_several(vms): pass
    def test_last(vm): pass
"""


@pytest.fixture
def suite(pytester: pytest.Pytester) -> dict[str, pytest.Item]:
    items = pytester.getitems(SUITE)
    items[0].session.items = items
    return {item.name: item for item in items}


def wanted(
    suite: dict[str, pytest.Item], now: str, following: str | None, present: list[Spec] | None = None
) -> tuple[int | None, str]:
    nextitem = suite[following] if following else None
    spec, node_id = next_spec(suite[now], nextitem, [BASE], lambda _node, spec: spec in (present or []))
    return (spec.ram if spec else None), node_id.rpartition("::")[2]


def test_the_next_test_that_runs_with_a_vm_is_found(suite: dict[str, pytest.Item]) -> None:
    assert wanted(suite, "test_first", "test_without") == (512, "test_next")
    assert wanted(suite, "test_next", "test_shared") == (3072, "test_shared")
    assert wanted(suite, "test_last", None) == (None, "")


def test_nothing_is_prefetched_while_a_test_has_several_vms(suite: dict[str, pytest.Item]) -> None:
    assert wanted(suite, "test_shared", "test_several") == (None, "")
    assert wanted(suite, "test_several", "test_last") == (1024, "test_last")


def test_a_shared_vm_that_exists_is_not_prefetched(suite: dict[str, pytest.Item]) -> None:
    shared = merge(BASE, {"ram": 3072, "scope": "module"})
    assert wanted(suite, "test_next", "test_shared", [shared]) == (None, "")


def test_nothing_is_prefetched_when_the_run_will_stop(suite: dict[str, pytest.Item]) -> None:
    suite["test_first"].session.shouldfail = "stopping after 1 failures"
    assert wanted(suite, "test_first", "test_without") == (None, "")


def test_a_worker_of_xdist_knows_only_the_next_test(suite: dict[str, pytest.Item]) -> None:
    suite["test_first"].config.workerinput = {}  # type: ignore[attr-defined]
    assert wanted(suite, "test_first", "test_without") == (None, "")
    assert wanted(suite, "test_without", "test_next") == (512, "test_next")
