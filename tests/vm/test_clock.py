"""The clock of a guest whose kernel measures it rightly or wrongly."""

import time

import pytest

from pytest_virtainers import VM

SOURCE = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
STATE = "systemctl show check-clock.service --property=ExecMainCode,ExecMainStatus,Result --value"
EXITED = ["1", "0", "success"]  # CLD_EXITED
MHZ = r"journalctl -k -b | sed -n 's/.*tsc: Detected \([0-9]*\)\..* MHz.*/\1/p'"


def test_a_good_clock_is_left_alone(vm: VM) -> None:
    assert sorted(vm.run(STATE).stdout.split()) == sorted(EXITED), "it ran"
    assert vm.run(["cat", SOURCE]).stdout == "tsc\n"
    vm.run("/usr/local/sbin/check-clock", sudo=True)  # as a clone, later, its time set
    assert vm.run(["cat", SOURCE]).stdout == "tsc\n"
    assert "check-clock:" not in vm.run("journalctl -k -b", sudo=True).stdout
    assert vm.console.clock() is None


@pytest.mark.thorough
@pytest.mark.virtainer(scope="function")
@pytest.mark.parametrize("factor", [23, 0.1])
def test_a_clock_that_the_kernel_measured_wrongly_is_mended(vm: VM, factor: float) -> None:
    khz = int(vm.run(MHZ, sudo=True).stdout) * 1000 / factor
    vm.run(f"sed -i 's/tsc=nowatchdog/& tsc_early_khz={khz:.0f}/' /boot/grub/grub.cfg; sync", sudo=True)
    vm.reboot()
    assert f"tsc_early_khz={khz:.0f}" in vm.run("cat /proc/cmdline").stdout
    assert vm.run(["cat", SOURCE]).stdout == "acpi_pm\n"
    report = vm.console.clock()
    assert report is not None
    assert "using acpi_pm instead" in report
    began, shown = time.time(), float(vm.run("date +%s.%N").stdout)
    assert abs(shown - began) < 5, "it shows the time"
    time.sleep(10)
    passed, shown = time.time() - began, float(vm.run("date +%s.%N").stdout) - shown
    assert 0.8 * passed < shown < 1.2 * passed + 1
