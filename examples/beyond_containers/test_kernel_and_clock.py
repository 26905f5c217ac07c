"""Tests that containers cannot run: the kernel and the clock belong to the VM, so changes affect nothing else."""

import time

import pytest

from pytest_virtainers import VM

pytestmark = pytest.mark.virtainer("lab", scope="module")

DAY_SECONDS = 24 * 3600


def test_a_kernel_module_loads(vm: VM) -> None:
    assert not vm.run("lsmod | grep '^dummy '", check=False)
    vm.run("modprobe dummy && ip link add test0 type dummy && ip address add 192.0.2.1/24 dev test0", sudo=True)
    assert "dummy" in vm.run("lsmod").stdout
    vm.run(["ping", "-c", "1", "192.0.2.1"], sudo=True)


def test_a_kernel_setting_changes(vm: VM) -> None:
    vm.run(["sysctl", "-w", "kernel.pid_max=5000"], sudo=True)
    assert vm.read_text("/proc/sys/kernel/pid_max") == "5000\n"


def test_a_certificate_expires(vm: VM) -> None:
    vm.run(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=lab "
        "-keyout key.pem -out cert.pem"
    )
    vm.run("openssl x509 -checkend 0 -in cert.pem")
    vm.run(f"timedatectl set-ntp false; date -s @{int(time.time()) + 2 * DAY_SECONDS}", sudo=True)
    assert "will expire" in vm.run("openssl x509 -checkend 0 -in cert.pem", check=False).stdout
    assert abs(float(vm.run("date +%s").stdout) - time.time()) > DAY_SECONDS
