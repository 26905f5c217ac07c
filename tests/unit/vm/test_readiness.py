import json
from collections.abc import Callable
from typing import Any

import paramiko
import pytest

from pytest_virtainers.errors import BootTimeout, GuestPanic, SSHError
from pytest_virtainers.ssh import client
from pytest_virtainers.ssh.keys import KeyPair
from pytest_virtainers.vm.console import Console
from pytest_virtainers.vm.readiness import Target, cloud_init_errors, wait_for_login
from tests.unit.fake_output import FakeOutput


class Output:
    """The part of a container that a console reads."""

    def __init__(self, stdout: bytes) -> None:
        self.stdout = FakeOutput(stdout)


def console(text: bytes = b"[    0.1] Linux version 6.12\r\n\x1b[32mlogin:\x1b[0m") -> Any:
    return Console(Output(text))  # type: ignore[arg-type]


def wait(connect: Callable[[float], Any], check: Callable[[], None] = lambda: None, timeout: float = 5) -> Any:
    return wait_for_login(Target("web", console(), check), connect, timeout)


def test_login_is_tried_until_it_works() -> None:
    failures = [ConnectionRefusedError(), paramiko.AuthenticationException("nologin"), EOFError()]

    def connect(_seconds: float) -> str:
        if failures:
            raise failures.pop(0)
        return "connected"

    assert wait(connect) == "connected"


def test_a_timeout_shows_the_last_failure_and_the_console() -> None:
    def connect(_seconds: float) -> None:
        raise ConnectionRefusedError(111, "Connection refused")

    with pytest.raises(BootTimeout) as caught:
        wait(connect, timeout=0.6)
    assert str(caught.value) == (
        "web did not let us log in over SSH within 1 s. The last try: [Errno 111] Connection refused. "
        "The last lines of its console:\n  | [    0.1] Linux version 6.12\n  | login:\n"
        "If it is only slow, give it more time (boot_timeout); a slow machine without KVM needs minutes."
    )


def test_waiting_ends_at_once_if_it_is_pointless() -> None:
    def connect(_seconds: float) -> None:
        raise ConnectionRefusedError

    def check() -> None:
        raise GuestPanic("web: Kernel panic")

    with pytest.raises(GuestPanic):
        wait(connect, check, timeout=3600)


def test_another_host_key_is_not_tried_again() -> None:
    ours, theirs = KeyPair.generate().paramiko(), KeyPair.generate().paramiko()

    def connect(_seconds: float) -> None:
        raise paramiko.BadHostKeyException("guest", theirs, ours)

    with pytest.raises(SSHError, match="web shows another SSH host key than the one that was given to it"):
        wait(connect, timeout=3600)


def test_programming_errors_are_not_retried() -> None:
    def connect(_seconds: float) -> None:
        raise SSHError("no")

    with pytest.raises(SSHError, match="no"):
        wait(connect, timeout=3600)


def test_paramiko_prints_nothing(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    import socket

    ours, theirs = socket.socketpair()
    theirs.sendall(b"not SSH at all\r\n")
    theirs.close()
    from pytest_virtainers.ssh.keys import Keys

    with pytest.raises(client.FAILURES):
        client.log_in(ours, "debian", Keys.generate(), timeout=5)
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


def test_cloud_init_errors_are_listed_by_stage() -> None:
    status = {
        "v1": {
            "stage": None,
            "init": {"errors": [], "recoverable_errors": {"WARNING": ["harmless"]}},
            "modules-final": {
                "errors": ["('scripts_user', RuntimeError())"],
                "recoverable_errors": {"ERROR": ["no package nginxx"]},
            },
        }
    }
    assert cloud_init_errors(json.dumps(status)) == [
        "modules-final: ('scripts_user', RuntimeError())",
        "modules-final: no package nginxx",
    ]
    assert cloud_init_errors("") == []


def test_console_text_is_readable_and_a_panic_is_known() -> None:
    assert console().text == "[    0.1] Linux version 6.12\nlogin:"
    assert console().panic() is None
    panicked = console(b"x\r\n[  9.1] Kernel panic - not syncing: sysrq triggered crash\r\nCPU: 0\r\n")
    assert panicked.panic() == "Kernel panic - not syncing: sysrq triggered crash"
    assert console(b"").tail() == "  | (the console is empty)"


def stall(grace_period: int) -> bytes:
    return (
        b"[  211.5] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:\r\n"
        b"[  211.5] rcu: \t(detected by 0, t=5252 jiffies, g=%d, q=12 ncpus=1)\r\n" % grace_period
    )


def test_a_kernel_that_reports_one_stall_twice_hangs() -> None:
    assert not console(b"rcu: Hierarchical RCU implementation.\r\n" * 2).stalled()
    assert not console(stall(-811)).stalled(), "a host that was suspended for half a minute causes one"
    assert not console(stall(-811) + stall(-807)).stalled(), "the first one has ended"
    assert console(stall(-811) + stall(-811)).stalled()


def test_reports_before_a_restart_are_forgotten() -> None:
    panic = b"[  9.1] Kernel panic - not syncing: %s\r\n"
    output = Output(panic % b"old" + stall(-811) * 2)
    seen = Console(output)  # type: ignore[arg-type]
    seen.forget_reports()
    assert seen.panic() is None
    assert not seen.stalled()
    output.stdout += stall(-811)
    assert not seen.stalled(), "earlier reports do not count"
    output.stdout += panic % b"new" + stall(-811)
    assert seen.panic() == "Kernel panic - not syncing: new"
    assert seen.stalled()
    assert "old" in seen.text, "earlier text can still be read"
