"""Time limits of pytest-timeout, in real pytest runs that need no engine."""

import pytest

# What `vm` needs may take longer than the limit of the tests, of which a busy machine takes some for itself.
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
def test_what_is_made_once_does_not_count(pytester: pytest.Pytester, method: str, limit: str) -> None:
    pytester.makepyfile(SUITE.format(seconds=3))
    result = pytester.runpytest_subprocess("-s", limit, f"--timeout-method={method}", "-k", "test_it")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*RAN*"])


@pytest.mark.parametrize("method", ["signal", "thread"])
def test_the_limit_holds_afterwards(pytester: pytest.Pytester, method: str) -> None:
    pytester.makepyfile(SUITE.format(seconds=0.1))
    result = pytester.runpytest_subprocess("-s", "--timeout=2", f"--timeout-method={method}", "-k", "test_slow")
    assert result.ret == 1
    assert result.duration < 100
    result.stdout.fnmatch_lines(["*time.sleep(120)*"])
    result.stdout.no_fnmatch_line("*NOTE*")


def test_a_line_says_that_the_limit_starts_again_and_how_to_make_things_ahead(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_x=SUITE.format(seconds=2.1))
    result = pytester.runpytest_subprocess("-s", "--timeout=2", "-k", "test_it")
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "*NOTE the time limit of test_x.py::test_it, 2 s, starts again: what was made now is made once. "
            "To make it ahead of the tests: pytest --virtainer-warm"
        ]
    )


@pytest.mark.parametrize("options", [(), ("-p", "no:timeout"), ("--timeout=2", "-otimeout_func_only=true")])
def test_without_a_limit_nothing_is_suspended(pytester: pytest.Pytester, options: tuple[str, ...]) -> None:
    pytester.makepyfile(SUITE.format(seconds=2.1))
    result = pytester.runpytest_subprocess("-s", *options, "-k", "test_it")
    assert result.ret == 0
    result.stdout.no_fnmatch_line("*NOTE*")
