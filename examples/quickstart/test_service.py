"""Install a service in a VM as an administrator would, and test it in a whole system.

All tests of this file share one VM; they run in order, and each builds on the previous one.
"""

import pytest

from pytest_virtainers import VM

pytestmark = pytest.mark.virtainer("web", scope="module")

UNIT = """
[Unit]
Description=Hello from a virtainer

[Service]
ExecStart=/usr/bin/python3 -m http.server 80 --directory /srv/hello
DynamicUser=yes
AmbientCapabilities=CAP_NET_BIND_SERVICE

[Install]
WantedBy=multi-user.target
"""


def test_install(vm: VM) -> None:
    vm.write_text("/srv/hello/index.html", "hello\n")
    vm.write_text("/etc/systemd/system/hello.service", UNIT)
    vm.run("systemctl daemon-reload && systemctl enable --now hello", sudo=True)
    assert vm.run("systemctl is-active hello").stdout == "active\n"


def test_it_answers_on_its_port(vm: VM) -> None:
    # From inside, as the VM's own users would; python's server needs a moment under emulation.
    fetch = "for n in $(seq 50); do curl -fsS http://localhost/ && exit; sleep 0.5; done; exit 1"
    assert vm.run(fetch, timeout=300).stdout == "hello\n"


def test_it_runs_without_root(vm: VM) -> None:
    pid = vm.run("systemctl show --value -p MainPID hello").stdout.strip()
    assert vm.run(["stat", "-c", "%U", f"/proc/{pid}"]).stdout != "root\n"


def test_systemd_restarts_it_after_a_crash(vm: VM) -> None:
    vm.write_text("/etc/systemd/system/hello.service.d/restart.conf", "[Service]\nRestart=always\nRestartSec=0\n")
    vm.run("systemctl daemon-reload", sudo=True)
    before = vm.run("systemctl show --value -p MainPID hello").stdout.strip()
    vm.run("systemctl kill -s KILL hello", sudo=True)
    vm.wait_until_succeeds(f"systemctl show --value -p MainPID hello | grep -vx -e 0 -e {before}")
    vm.wait_for_unit("hello")


def test_it_survives_a_reboot(vm: VM) -> None:
    vm.write_text("/srv/hello/index.html", "still here\n")
    vm.reboot()
    vm.run("until curl -fsS http://localhost/; do sleep 0.5; done", timeout=300)
    assert vm.run("curl -fsS http://localhost/").stdout == "still here\n"
