"""Waiting: the event happens, or the message has its name, the time and what was seen last."""

import time

import pytest

from pytest_virtainers import VM, UnitFailed, WaitTimeout


def test_wait_until_a_command_succeeds_or_fails(session_vm: VM) -> None:
    session_vm.popen("sleep 2; touch /tmp/there")
    assert session_vm.wait_until_succeeds("test -e /tmp/there && echo yes").stdout == "yes\n"
    session_vm.popen("sleep 2; rm /tmp/there")
    assert session_vm.wait_until_fails(["test", "-e", "/tmp/there"]).exit_code == 1
    with pytest.raises(WaitTimeout, match=r"waited 8 s for the success of 'echo no; false' on vm; .*: exit code 1"):
        session_vm.wait_until_succeeds("echo no; false", timeout=8 / session_vm.scaled(1))


def test_wait_for_a_unit_that_becomes_active(session_vm: VM) -> None:
    session_vm.run("systemd-run --unit=slow --on-active=2 sleep 600", sudo=True)
    session_vm.wait_for_unit("slow")
    session_vm.run("systemctl stop slow", sudo=True)
    with pytest.raises(WaitTimeout, match=r"unit none\.service of vm; seen last: .*LoadState not-found"):
        session_vm.wait_for_unit("none.service", timeout=8 / session_vm.scaled(1))


def test_a_failed_unit_is_reported_at_once_with_its_journal(session_vm: VM) -> None:
    session_vm.run("systemd-run --wait --unit=broken sh -c 'echo because of this; exit 7'", sudo=True, check=False)
    began = time.monotonic()
    with pytest.raises(UnitFailed, match=r"(?s)unit broken of vm has failed .*\n  \| .*because of this"):
        session_vm.wait_for_unit("broken")
    assert time.monotonic() - began < session_vm.scaled(15)
    session_vm.run("systemctl reset-failed broken", sudo=True)


def test_wait_for_ports_and_files(session_vm: VM) -> None:
    session_vm.wait_for_closed_port(8123)
    process = session_vm.popen("sleep 1; touch /tmp/soon; exec python3 -m http.server 8123 --bind 127.0.0.1")
    session_vm.wait_for_file("/tmp/soon")
    session_vm.wait_for_port(8123)
    process.terminate()
    session_vm.wait_for_closed_port(8123)
    with pytest.raises(WaitTimeout, match=r"port 8123 of localhost on vm; seen last: no connection"):
        session_vm.wait_for_port(8123, timeout=8 / session_vm.scaled(1))


def test_wait_for_the_console(session_vm: VM) -> None:
    session_vm.popen("sleep 1; echo 'token: 4711' >/dev/ttyS0", sudo=True)
    assert session_vm.wait_for_console(r"token: (\d+)")[1] == "4711"


def test_wait_for_any_condition(session_vm: VM) -> None:
    counted = iter(range(10))
    assert session_vm.wait_for(lambda: next(counted) if next(counted) > 4 else 0) == 6
    with pytest.raises(WaitTimeout, match=r"waited 1 s for Godot on vm; seen last: False"):
        session_vm.wait_for(lambda: False, what="Godot", timeout=1 / session_vm.scaled(1))
    session_vm.wait_for_cloud_init()
