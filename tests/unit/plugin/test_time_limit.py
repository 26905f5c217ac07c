"""Time limits of pytest-timeout, in real pytest runs without an engine."""

import pytest

# Creating the template may take longer than the time limit of the tests; a busy machine uses up some of that, too.
SUITE = """
    import time
    import pytest
    from pytest_virtainers.plugin import time_limit

    @pytest.fixture
    def machine(pytestconfig):
        with time_limit.suspended(pytestconfig, lambda line: print("NOTE", line)):
            with time_limit.suspended(pytestconfig, print):
                time.sleep({seconds})

    def test_it(machine): print("RAN")

    def test_slow(machine): time.sleep(120)
"""


@pytest.mark.parametrize("method", ["signal", "thread"])
@pytest.mark.parametrize("limit", ["--timeout=2", "-otimeout=2"])
def test_time_while_suspended_does_not_count(pytester: pytest.Pytester, method: str, limit: str) -> None:
    pytester.makepyfile(SUITE.format(seconds=3))
    result = pytester.runpytest_subprocess("-s", limit, f"--timeout-method={method}", "-k", "test_it")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*RAN*"])


@pytest.mark.parametrize("method", ["signal", "thread"])
def test_the_limit_applies_afterwards(pytester: pytest.Pytester, method: str) -> None:
    pytester.makepyfile(SUITE.format(seconds=0.1))
    result = pytester.runpytest_subprocess("-s", "--timeout=2", f"--timeout-method={method}", "-k", "test_slow")
    assert result.ret == 1
    assert result.duration < 100
    result.stdout.fnmatch_lines(["*time.sleep(120)*"])
    result.stdout.no_fnmatch_line("*NOTE*")


def test_a_long_suspension_is_reported_with_a_hint(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_x=SUITE.format(seconds=2.1))
    result = pytester.runpytest_subprocess("-s", "--timeout=2", "-k", "test_it")
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "*NOTE the time limit of test_x.py::test_it, 2 s, starts again, as an image or template was created. "
            "To create them before the tests: pytest --virtainer-warm"
        ]
    )


@pytest.mark.parametrize("options", [(), ("-p", "no:timeout"), ("--timeout=2", "-otimeout_func_only=true")])
def test_without_a_limit_nothing_is_suspended(pytester: pytest.Pytester, options: tuple[str, ...]) -> None:
    pytester.makepyfile(SUITE.format(seconds=2.1))
    result = pytester.runpytest_subprocess("-s", *options, "-k", "test_it")
    assert result.ret == 0
    result.stdout.no_fnmatch_line("*NOTE*")
