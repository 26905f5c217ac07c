"""Templates in pytest runs with time limits, and templates that are made ahead."""

import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from pytest_virtainers import VM, ProvisionTimeout

SHAPE = 'ram="512M", disk="3G", cpus=2'
UNIQUE = os.urandom(8).hex()
SLOW = {"final_message": UNIQUE, "bootcmd": ["sleep 600"]}  # with KVM, too


def run(pytester: pytest.Pytester, suite: str, *options: str) -> pytest.RunResult:
    """Return the output without the short summary, which repeats whole errors if the variable CI is set."""
    pytester.makepyfile(test_x=suite)
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", "-rN", *options)


def test_time_limits_do_not_end_templates_and_failed_ones_are_not_retried(pytester: pytest.Pytester) -> None:
    """A template takes longer than the time limit of the tests, which would end the process, and fails."""
    suite = f"""
        import pytest

        pytestmark = pytest.mark.virtainer({SHAPE}, boot_timeout=30, user_data={SLOW})

        @pytest.mark.parametrize("number", range(4))
        def test_it(vm, number): pass
    """
    result = run(pytester, suite, "--timeout=15", "--timeout-method=thread", "--virtainer-keep=never")
    result.assert_outcomes(errors=4)
    shown = result.stdout.str()
    assert shown.count("virtainers: booting vm (debian-13): failed in ") == 1
    assert shown.count("BootTimeout: vm did not let us log in over SSH within 30 s") == 4
    assert shown.count("TemplateError: vm: its template could not be made in this run, and is not tried again.") == 3
    assert "::test_it[0], 15 s, starts again, as an image or template was created" in shown
    assert "pytest --virtainer-warm" in shown


def test_workers_share_failures(pytester: pytest.Pytester) -> None:
    suite = f"""
        import pytest

        pytestmark = pytest.mark.virtainer({SHAPE}, boot_timeout=15, user_data={SLOW})

        @pytest.mark.parametrize("number", range(4))
        def test_it(vm, number): pass
    """
    result = run(pytester, suite, "-n", "2", "--virtainer-keep=never")
    result.assert_outcomes(errors=4)
    assert result.stdout.str().count("TemplateError: vm: its template could not be made in this run") == 3


@pytest.mark.virtainer(ram="512M", disk="3G", cpus=2)
def test_provisioning_continues_while_there_is_progress(vm: VM) -> None:
    """A process in a clone behaves like cloud-init while it runs."""
    steps = "for n in $(seq 25); do echo step $n; sleep 1; done >>/var/log/cloud-init-output.log"
    vm.machine.spec = replace(vm.spec, provision_timeout=15 / vm.scaled(1))
    vm.run("rm /run/cloud-init/result.json", sudo=True)
    vm.run(f"({steps}) >/dev/null 2>&1 &", sudo=True)
    with pytest.raises(ProvisionTimeout) as caught:
        vm.machine.wait_until_provisioned()
    said = re.match(
        r"vm let us log in, but cloud-init \(packages, run_commands, user_data\) has not finished after (\d+) s, "
        r"the last \d+ s without progress\. The limit is provision_timeout=(?:15|1\.5, 15 s without KVM); give it "
        r"more if a step takes long\.\nThe last lines of cloud-init's output:\n(?:  \| step \d+\n)+  \| step 25\n",
        str(caught.value),
    )
    assert said, str(caught.value)
    assert int(said[1]) > 35, "it continued while it made progress"
    vm.run("touch /run/cloud-init/result.json", sudo=True)
    vm.machine.wait_until_provisioned()


def test_tests_use_templates_that_were_made_ahead(pytester: pytest.Pytester) -> None:
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
    ahead.stdout.fnmatch_lines(["virtainers: 1 of 1: debian-13, 512 MiB, 2 CPU, *, files /made: created in *"])
    ahead.stdout.fnmatch_lines(["*no tests ran in *"])
    again = run(pytester, suite, "--virtainer-warm")
    again.stdout.fnmatch_lines(["virtainers: 1 of 1: *: ready in *"])
    tests = run(pytester, suite, "--timeout=120", "--virtainer-durations")
    tests.assert_outcomes(passed=2)
    tests.stdout.no_re_match_line(r" +(.* )?(layer|template)\b")  # the table's heading


def test_build_makes_the_template_of_a_shape() -> None:
    words = ["build", "--ram", "512M", "--disk", "3G", "--cpus", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest_virtainers.cli", *words], capture_output=True, text=True, check=True
    )
    assert re.fullmatch(r"debian-13 is ready on .*: debian-13-\w+, sha256 \w{64}, with its template\n", done.stdout)
