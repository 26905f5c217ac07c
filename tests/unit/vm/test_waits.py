"""Waiting for events in a guest, with an SSH connection that only returns results."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import paramiko
import pytest

from pytest_virtainers import SSHError, UnitFailed, VMGone, WaitTimeout
from pytest_virtainers.errors import GuestStalled
from pytest_virtainers.support import polling
from pytest_virtainers.support.interruptible import TimedOut
from pytest_virtainers.vm.vm import VM
from tests.unit.vm.fake_guest import FORBIDDEN, REFUSED, result, unit, waiting, web

if TYPE_CHECKING:
    from collections.abc import Callable

BROKEN = paramiko.SSHException("the transport has ended")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polling, "_PAUSE_SECONDS", 0.001)


def test_commands_run_until_they_succeed_or_fail() -> None:
    vm, connection = waiting(result(code=1), TimedOut(), result("done"))
    assert vm.wait_until_succeeds("make", user="nobody").stdout == "done"
    assert len(connection.asked) == 3
    assert all("sudo -n -u nobody" in command for command in connection.asked)
    assert web(result(), result(code=3)).wait_until_fails("make").exit_code == 3


def test_the_message_has_the_last_output() -> None:
    with pytest.raises(WaitTimeout) as caught:
        web(result("not yet", 7)).wait_until_succeeds(["is", "it"], timeout=0.01)
    assert str(caught.value) == (
        "waited 0.01 s for the success of ['is', 'it'] on web; seen last: exit code 7\n"
        "--- stdout (7 bytes)\nnot yet\n--- stderr (0 bytes)"
    )


def test_the_message_names_the_condition_and_its_result() -> None:
    def is_full() -> list[int]:
        return []

    with pytest.raises(WaitTimeout, match=r"waited 0.01 s for is_full on web; seen last: \[\]"):
        web().wait_for(is_full, timeout=0.01)
    assert web().wait_for(lambda: 7) == 7


def test_a_unit_may_still_be_starting() -> None:
    vm, connection = waiting(unit("inactive", "dead"), unit("activating", "start"), unit("active", "running"))
    vm.wait_for_unit("nginx")
    assert len(connection.asked) == 3


def test_a_failed_unit_ends_the_wait_with_its_journal() -> None:
    vm = web(unit("failed", "failed"), result("bind: no such port\n"))
    with pytest.raises(UnitFailed) as caught:
        vm.wait_for_unit("nginx", timeout=3600)
    assert str(caught.value) == (
        "unit nginx of web has failed (LoadState loaded, ActiveState failed, SubState failed, Result success). "
        "The end of its journal:\n  | bind: no such port"
    )


@pytest.mark.parametrize(
    ("wait", "answers"),
    [
        (VM.wait_for_port, [REFUSED, BROKEN, "a channel"]),
        (VM.wait_for_closed_port, ["a channel", BROKEN, REFUSED]),
    ],
)
def test_ports_are_tried_from_the_guest_and_a_broken_connection_proves_nothing(
    wait: Callable[..., None], answers: list[Any]
) -> None:
    vm, connection = waiting(
        *(SimpleNamespace(close=lambda: None) if isinstance(each, str) else each for each in answers)
    )
    wait(vm, 80, host="db")
    assert connection.asked == [("direct-tcpip", ("db", 80))] * 3


def test_the_message_has_the_reason_why_a_port_is_closed() -> None:
    with pytest.raises(
        WaitTimeout, match=r"for port 80 of localhost on web; seen last: no connection \(Connect failed"
    ):
        web(REFUSED).wait_for_port(80, timeout=0.01)


@pytest.mark.parametrize("wait", [VM.wait_for_port, VM.wait_for_closed_port])
def test_an_sshd_that_forbids_forwarding_is_an_error(wait: Callable[..., None]) -> None:
    with pytest.raises(SSHError, match=r"web: its sshd refuses to connect to port 80 of db .*\(Administratively pro"):
        wait(web(FORBIDDEN), 80, host="db")


@pytest.mark.parametrize("wait", [VM.wait_for_port, VM.wait_for_closed_port])
def test_a_guest_that_hangs_has_no_closed_ports(wait: Callable[..., None]) -> None:
    vm = web(TimedOut(), hangs=True)
    with pytest.raises(GuestStalled, match=r"web: the guest hangs: it has not answered for 5 s.*\n  \| login:"):
        wait(vm, 80)


def test_a_port_without_an_answer_is_closed_if_the_guest_answers() -> None:
    web(TimedOut()).wait_for_closed_port(80)
    with pytest.raises(WaitTimeout, match="seen last: no answer"):
        web(TimedOut()).wait_for_port(80, timeout=0.01)


def test_wait_for_console_reads_from_the_first_line_until_the_vm_ends() -> None:
    vm = web()
    assert vm.wait_for_console("^log(.*):$")[1] == "in"
    container: Any = vm.machine.container
    container.ended = True
    assert vm.wait_for_console("login"), "existing text matches even with timeout=0"
    with pytest.raises(VMGone):
        vm.wait_for_console("password", timeout=3600)


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("web(unit('failed', 'failed'), result()).wait_for_unit('nginx')", "UnitFailed"),
        ("web(unit('inactive', 'dead')).wait_for_unit('nginx', timeout=0)", "WaitTimeout"),
        ("web(result(code=1)).wait_until_succeeds('x', timeout=0)", "WaitTimeout"),
        ("web(result(code=1)).wait_for_file('/x', timeout=0)", "WaitTimeout"),
        ("web(REFUSED).wait_for_port(80, timeout=0)", "WaitTimeout"),
        ("web(FORBIDDEN).wait_for_closed_port(80)", "SSHError"),
        ("web().wait_for_console('Welcome', timeout=0)", "WaitTimeout"),
        ("web().console.expect('Welcome', timeout=0)", "WaitTimeout"),
        ("web().wait_for(lambda: 0, timeout=0)", "WaitTimeout"),
    ],
)
def test_a_failure_shows_the_line_of_the_test_last(pytester: pytest.Pytester, line: str, error: str) -> None:
    names = "FORBIDDEN, REFUSED, result, unit, web"
    pytester.makepyfile(f"from tests.unit.vm.fake_guest import {names}\ndef test_it():\n    {line}\n")
    shown = pytester.runpytest_inprocess("-p", "no:cacheprovider").stdout
    shown.fnmatch_lines([f">   *{line}".replace("[", "[[]"), f"*.py:3: {error}"])
    shown.no_fnmatch_line("*pytest_virtainers/vm/*")
