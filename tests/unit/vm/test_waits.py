"""What is waited for in a guest, here one that only answers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import paramiko
import pytest

from pytest_virtainers import CommandTimeout, Result, SSHError, UnitFailed, VMGone, WaitTimeout
from pytest_virtainers.errors import GuestStalled
from pytest_virtainers.support import deadline
from pytest_virtainers.support.interruptible import TimedOut
from pytest_virtainers.vm.console import Console
from pytest_virtainers.vm.waits import Waits
from tests.unit.fake_output import Said

if TYPE_CHECKING:
    from collections.abc import Callable

FORBIDDEN = paramiko.ChannelException(1, "Administratively prohibited")
REFUSED = paramiko.ChannelException(2, "Connect failed")
BROKEN = paramiko.SSHException("the transport is gone")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadline, "_PAUSE_SECONDS", 0.001)


def result(text: str = "", code: int = 0) -> Result:
    return Result("a command", code, text.encode(), b"", 0.1)


def unit(state: str, sub: str) -> Result:
    return result(f"LoadState=loaded\nActiveState={state}\nSubState={sub}\nResult=success\n")


class Machine(Waits):
    """Gives the next of its answers to each command and each connection; the last one again and again."""

    def __init__(self, *answers: Any) -> None:
        self.name, self.user, self._halted = "web", "debian", ""
        self.given = list(answers)
        self.asked: list[Any] = []
        self.output = SimpleNamespace(stdout=Said(b"login:\n"))
        self.console = Console(self.output)
        self.is_gone, self.hangs = False, False

    def answers(self, _seconds: float) -> bool:
        return not self.hangs

    def _next(self) -> Any:
        answer = self.given.pop(0) if len(self.given) > 1 else self.given[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def run(self, command: Any, **arguments: Any) -> Result:
        self.asked.append((command, arguments))
        answer: Result = self._next()
        return answer

    def open_channel(self, kind: str, target: tuple[str, int], _origin: object) -> Any:
        self.asked.append((kind, target))
        return self._next()

    @property
    def transport(self) -> Any:
        return self

    def close(self) -> None:
        pass

    def _connected(self) -> Any:
        return self

    def _check_alive(self, _grace_seconds: float = 0.0) -> None:
        if self.is_gone:
            raise VMGone("web has ended")

    def scaled(self, seconds: float) -> float:
        return seconds


def test_a_command_is_run_until_it_succeeds_or_fails() -> None:
    machine = Machine(result(code=1), CommandTimeout(result(code=-1), "web"), result("done"))
    assert machine.wait_until_succeeds("make", user="nobody").stdout == "done"
    assert all(arguments["user"] == "nobody" for _, arguments in machine.asked)
    assert Machine(result(), result(code=3)).wait_until_fails("make").exit_code == 3


def test_what_a_command_said_last_is_in_the_message() -> None:
    with pytest.raises(WaitTimeout) as caught:
        Machine(result("not yet", 7)).wait_until_succeeds(["is", "it"], timeout=0.01)
    assert str(caught.value) == (
        "waited 0.01 s for the success of ['is', 'it'] on web; seen last: exit code 7\n"
        "--- stdout (7 bytes)\nnot yet\n--- stderr (0 bytes)"
    )


def test_a_condition_is_named_and_shown() -> None:
    def is_full() -> list[int]:
        return []

    with pytest.raises(WaitTimeout, match=r"waited 0.01 s for is_full on web; seen last: \[\]"):
        Machine().wait_for(is_full, timeout=0.01)
    assert Machine().wait_for(lambda: 7) == 7


def test_a_unit_may_still_be_starting() -> None:
    machine = Machine(unit("inactive", "dead"), unit("activating", "start"), unit("active", "running"))
    machine.wait_for_unit("nginx")
    assert len(machine.asked) == 3


def test_a_failed_unit_is_told_at_once_with_its_journal() -> None:
    machine = Machine(unit("failed", "failed"), result("bind: no such port\n"))
    with pytest.raises(UnitFailed) as caught:
        machine.wait_for_unit("nginx", timeout=3600)
    assert str(caught.value) == (
        "unit nginx of web has failed (LoadState loaded, ActiveState failed, SubState failed, Result success). "
        "The end of its journal:\n  | bind: no such port"
    )


@pytest.mark.parametrize(
    ("wait", "answers"),
    [
        (Machine.wait_for_port, [REFUSED, BROKEN, "a channel"]),
        (Machine.wait_for_closed_port, ["a channel", BROKEN, REFUSED]),
    ],
)
def test_a_port_is_tried_by_the_guest_and_a_broken_connection_says_nothing_of_it(
    wait: Callable[..., None], answers: list[Any]
) -> None:
    machine = Machine(*(SimpleNamespace(close=lambda: None) if isinstance(each, str) else each for each in answers))
    wait(machine, 80, host="db")
    assert machine.asked == [("direct-tcpip", ("db", 80))] * 3


def test_a_port_that_stays_shut_says_how() -> None:
    with pytest.raises(
        WaitTimeout, match=r"for port 80 of localhost on web; seen last: no connection \(Connect failed"
    ):
        Machine(REFUSED).wait_for_port(80, timeout=0.01)


@pytest.mark.parametrize("wait", [Machine.wait_for_port, Machine.wait_for_closed_port])
def test_an_sshd_that_does_not_try_knows_nothing_of_a_port(wait: Callable[..., None]) -> None:
    with pytest.raises(SSHError, match=r"web: its sshd does not try to reach port 80 of db .*\(Administratively pro"):
        wait(Machine(FORBIDDEN), 80, host="db")


@pytest.mark.parametrize("wait", [Machine.wait_for_port, Machine.wait_for_closed_port])
def test_a_guest_that_hangs_has_no_closed_port(wait: Callable[..., None]) -> None:
    machine = Machine(TimedOut())
    machine.hangs = True
    with pytest.raises(GuestStalled, match=r"web: the guest hangs: it has not answered for 5 s.*\n  \| login:"):
        wait(machine, 80)


def test_a_port_that_gives_no_answer_is_closed_if_the_guest_does() -> None:
    Machine(TimedOut()).wait_for_closed_port(80)
    with pytest.raises(WaitTimeout, match="seen last: no answer"):
        Machine(TimedOut()).wait_for_port(80, timeout=0.01)


def test_the_console_is_read_from_its_first_line_and_no_longer_than_the_machine_lives() -> None:
    machine = Machine()
    assert machine.wait_for_console("^log(.*):$")[1] == "in"
    machine.is_gone = True
    assert machine.wait_for_console("login"), "what is there is there"
    with pytest.raises(VMGone):
        machine.wait_for_console("password", timeout=3600)


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("Machine(unit('failed', 'failed'), result()).wait_for_unit('nginx')", "UnitFailed"),
        ("Machine(unit('inactive', 'dead')).wait_for_unit('nginx', timeout=0)", "WaitTimeout"),
        ("Machine(result(code=1)).wait_until_succeeds('x', timeout=0)", "WaitTimeout"),
        ("Machine(result(code=1)).wait_for_file('/x', timeout=0)", "WaitTimeout"),
        ("Machine(REFUSED).wait_for_port(80, timeout=0)", "WaitTimeout"),
        ("Machine(FORBIDDEN).wait_for_closed_port(80)", "SSHError"),
        ("Machine().wait_for_console('Welcome', timeout=0)", "WaitTimeout"),
        ("Machine().console.expect('Welcome', timeout=0)", "WaitTimeout"),
        ("Machine().wait_for(lambda: 0, timeout=0)", "WaitTimeout"),
    ],
)
def test_what_a_failure_shows_last_is_the_line_of_the_test(pytester: pytest.Pytester, line: str, error: str) -> None:
    names = "FORBIDDEN, REFUSED, Machine, result, unit"
    pytester.makepyfile(f"from tests.unit.vm.test_waits import {names}\ndef test_it():\n    {line}\n")
    shown = pytester.runpytest_inprocess("-p", "no:cacheprovider").stdout
    shown.fnmatch_lines([f">   *{line}".replace("[", "[[]"), f"*.py:3: {error}"])
    shown.no_fnmatch_line("*pytest_virtainers/vm/*")
