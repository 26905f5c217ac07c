"""Clones that are made ready while another test runs, in a separate pytest run."""

import pytest

# The tests ask the engine which VMs exist, and whether theirs existed before they requested it.
SUITE = """
    import os
    import time
    import docker
    import pytest
    from pytest_virtainers.plugin import session

    pytestmark = pytest.mark.virtainer("ahead", ram=512, disk="3G", cpus=2, nics=["side"])
    AHEAD = {ahead}
    before = set()

    def present(config):
        api = docker.APIClient(base_url=session.launcher(config).engine.url, version="auto")
        found = api.containers(filters={{"label": ["virtainers.vm=ahead", f"virtainers.owner-pid={{os.getpid()}}"]}})
        api.close()
        return {{each["Id"] for each in found}}

    def wait_for(config, count):
        deadline = time.monotonic() + 120
        while len(seen := present(config)) != count and time.monotonic() < deadline:
            time.sleep(0.1)
        assert len(seen) == count
        return seen

    @pytest.mark.parametrize("number", [1, 2, 3])
    def test_fresh(vm, number, pytestconfig):
        vm.run("test ! -e /tmp/seen && touch /tmp/seen")
        side = vm.nics["side"]
        assert side.ip in vm.run(["ip", "addr", "show", side.device]).stdout
        assert (vm.machine.container.id in before) == (AHEAD and number > 1)
        before.update(wait_for(pytestconfig, 2 if AHEAD and number < 3 else 1))

    @pytest.mark.skip
    def test_skipped(vm): pass

    def test_without(pytestconfig):
        wait_for(pytestconfig, 0)
"""


def run(pytester: pytest.Pytester, suite: str, *options: str) -> pytest.RunResult:
    pytester.makepyfile(suite)
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", *options)


def test_each_test_finds_its_clone_ready(pytester: pytest.Pytester) -> None:
    result = run(pytester, SUITE.format(ahead=True), "--virtainer-durations")
    result.assert_outcomes(passed=4, skipped=1)
    shown = [line.split() for line in result.outlines]
    assert ["clone", "prefetch", "prefetched"] in [row[-3:] for row in shown]
    assert ["VMs", "1", "2", "2"] in [row[:1] + row[-3:] for row in shown]


def test_workers_report_their_timings(pytester: pytest.Pytester) -> None:
    suite = SUITE.format(ahead=True).replace("assert (vm", "return (vm")
    result = run(pytester, suite, "--virtainer-durations", "-n", "2", "-k", "fresh")
    result.assert_outcomes(passed=3)
    number = next(number for number, line in enumerate(result.outlines) if line.startswith("VMs"))
    kinds, counts = result.outlines[number - 1].split(), result.outlines[number].split()[1:]
    assert sum(int(count) for kind, count in zip(kinds, counts, strict=True) if kind in {"clone", "prefetched"}) == 3


def test_prefetching_can_be_switched_off(pytester: pytest.Pytester) -> None:
    run(pytester, SUITE.format(ahead=False), "--virtainer-prefetch=off").assert_outcomes(passed=4, skipped=1)


def test_none_is_left_when_a_run_stops_early(pytester: pytest.Pytester, request: pytest.FixtureRequest) -> None:
    suite = SUITE.format(ahead=True) + "        assert False, 'stop'\n"
    stopping = suite.replace("touch /tmp/seen", "false")
    run(pytester, stopping, "-x").assert_outcomes(failed=1)
    engine = request.getfixturevalue("engine")
    assert not engine.api.containers(all=True, filters={"label": ["virtainers.vm=ahead"]})
