"""Templates in pytest runs with time limits, and templates that are made ahead."""

import os
import re
import subprocess
import sys

import pytest

SHAPE = 'ram="512M", disk="3G", cpus=2'
UNIQUE = os.urandom(8).hex()


def run(pytester: pytest.Pytester, suite: str, *options: str) -> pytest.RunResult:
    pytester.makepyfile(test_x=suite)
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:xdist", *options)


def test_provisioning_has_its_own_limit_and_a_failed_template_is_not_tried_again(pytester: pytest.Pytester) -> None:
    """Here a boot takes longer than the time limit of the tests, which would end the process."""
    commands = ["for n in $(seq 30); do echo step $n; sleep 1; done", "sleep 600"]
    suite = f"""
        import pytest

        pytestmark = pytest.mark.virtainer({SHAPE}, accel="tcg", provision_timeout=2.5, run_commands={commands})

        def test_first(vm): pass
        def test_second(vm): pass
    """
    result = run(pytester, suite, "--timeout=12", "--timeout-method=thread", "--virtainer-keep=never")
    result.assert_outcomes(errors=2)
    first, second = result.stdout.str().split("ERROR at setup of test_second")
    said = re.search(
        r"ProvisionTimeout: vm let us log in, but cloud-init \(packages, run_commands, user_data\) has not finished "
        r"after (\d+) s, the last (?:2[5-9]|3\d) s without progress\. "
        r"The limit is provision_timeout=2\.5, 25 s without KVM; give it more if a step takes long\.\n",
        re.sub(r"\nE +", "\n", first),
    )
    assert said, first
    assert int(said[1]) > 45, "it went on while it made progress"
    assert "| step 30\n" in first
    assert (
        "TemplateError: vm: its template could not be made in this run, and is not tried again. The first" in second
    )
    assert "starts again: what was made now is made once" in first
    assert "pytest --virtainer-warm" in first


def test_what_is_made_ahead_is_there_for_the_tests(pytester: pytest.Pytester) -> None:
    suite = f"""
        import pytest

        pytestmark = pytest.mark.virtainer({SHAPE}, files={{"/made": "{UNIQUE}"}})

        @pytest.mark.parametrize("number", [1, 2])
        def test_it(vm, number):
            assert vm.read_text("/made") == "{UNIQUE}"
            assert "Linux version" not in vm.console.text
    """
    ahead = run(pytester, suite, "--virtainer-warm", "--timeout=12")
    assert ahead.ret == 0
    ahead.stdout.fnmatch_lines(["virtainers: 1 of 1: debian-13, 512 MiB, 2 CPU, *, files /made: made in *"])
    ahead.stdout.fnmatch_lines(["*no tests ran in *"])
    again = run(pytester, suite, "--virtainer-warm")
    again.stdout.fnmatch_lines(["virtainers: 1 of 1: *: ready in *"])
    tests = run(pytester, suite, "--timeout=30", "--virtainer-durations")
    tests.assert_outcomes(passed=2)
    tests.stdout.no_fnmatch_line("*template*")


def test_build_makes_the_template_of_a_shape() -> None:
    words = ["build", "--ram", "512M", "--disk", "3G", "--cpus", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest_virtainers.cli", *words], capture_output=True, text=True, check=True
    )
    assert re.fullmatch(r"debian-13 is ready on .*: debian-13-\w+, sha256 \w{64}, with its template\n", done.stdout)
