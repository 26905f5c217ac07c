"""How a VM ends, with a child process in place of QEMU and a socket in place of its monitor."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from virtainer import machine, run, signals, supervise
from virtainer.exit_reasons import End, Reason
from virtainer.qmp import Monitor
from virtainer.settings import Settings
from virtainer.supervise import Supervisor, outcome

GUEST = {"guest": True, "reason": "guest-shutdown"}


@pytest.fixture(autouse=True)
def no_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "DEVICES_ADDED", tmp_path / "devices-added")


@pytest.mark.parametrize(
    ("status", "shutdown", "asked", "reason", "sentence"),
    [
        (0, GUEST, False, Reason.POWERED_OFF, "the guest switched itself off"),
        (0, GUEST, True, Reason.STOPPED, "the guest shut down as requested"),
        (0, {"guest": False, "reason": "host-qmp-quit"}, False, Reason.QUIT, "a QMP command ended QEMU"),
        (9, {}, False, Reason.QEMU, "QEMU was killed (SIGKILL): has the container too little memory"),
        (7, {}, False, Reason.STORAGE, "QEMU could not write its memory file (SIGBUS): no space left in IMAGE_DIR"),
        (11, {}, False, Reason.QEMU, "QEMU ended by itself (SIGSEGV): last words"),
        (1 << 8, {}, False, Reason.QEMU, "QEMU ended by itself (exit code 1): last words"),
        (1 << 8, GUEST, True, Reason.QEMU, "QEMU ended by itself (exit code 1): last words"),
    ],
)
def test_outcome(status: int, shutdown: dict[str, Any], asked: bool, reason: Reason, sentence: str) -> None:
    end = outcome(status, shutdown, "last words", asked=asked)
    assert end.reason is reason
    assert str(end).startswith(sentence)
    assert end.crashed == (status == 11)


def test_the_sentence_of_an_end_is_one_line() -> None:
    assert str(End(Reason.QEMU, "one\n  two")) == "one two"


def test_exit_codes_are_those_of_the_documentation() -> None:
    page = (Path(__file__).parents[3] / "docs" / "runtime-image.md").read_text()
    documented: dict[str, int] = {}
    for row in page[page.index("| word | exit code |") :].splitlines()[2:]:
        words, codes = re.findall(r"`([a-z-]+)`", row.split("|")[1]), re.findall(r"\d+", row.split("|")[2])
        documented |= dict(zip(words, map(int, codes * (len(words) // len(codes))), strict=True))
    assert {reason.word: reason.code for reason in Reason} == documented


class Qemu:
    """A child that runs until the command `quit`; `commands` records what the supervisor sends."""

    def __init__(self, *argv: str, obeys_powerdown: bool = False, obeys_quit: bool = True) -> None:
        self.process = subprocess.Popen(argv or ["cat"], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        self.ours, self.theirs = socket.socketpair()
        self.queue, self.requests = os.pipe()
        self.commands: list[str] = []
        self.snapshots: list[tuple[str, str]] = []
        self.dnsmasq = 0
        self.was_booting = False
        self._obeyed = {"system_powerdown": obeys_powerdown, "quit": obeys_quit}
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with self.theirs.makefile("rb") as lines:
            for line in lines:
                command = json.loads(line)["execute"]
                self.commands.append(command)
                if self._obeyed.get(command):
                    self.end("guest-shutdown" if command == "system_powerdown" else "host-qmp-quit")

    def end(self, reason: str) -> None:
        self.event("SHUTDOWN", {"guest": reason.startswith("guest"), "reason": reason})
        self.die()

    def die(self) -> None:
        """End the child, and wait until it is a zombie, as the supervisor reaps it."""
        assert self.process.stdin
        self.process.stdin.close()
        os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        self.theirs.shutdown(socket.SHUT_WR)
        self.request(signal.SIGCHLD)

    def event(self, name: str, data: dict[str, Any]) -> None:
        self.theirs.sendall(json.dumps({"event": name, "data": data}).encode() + b"\n")

    def request(self, *numbers: int) -> None:
        os.write(self.requests, bytes(numbers))

    def supervise(self, grace: float = 30, *, linger: bool = False) -> End:
        assert self.process.stderr
        supervisor = Supervisor(
            qemu=self.process.pid,
            stderr=self.process.stderr,
            dnsmasq=self.dnsmasq,
            dnsmasq_log="/dnsmasq.log",
            monitor=Monitor(self.ours),
            monitor_fd=self.ours.fileno(),
            queue=self.queue,
            linger=linger,
            grace=grace,
            on_snapshot=(lambda *done: self.snapshots.append(done),),
            on_line_closed=lambda: self.snapshots.append(("line", "closed")),
        )
        try:
            end = supervisor.run()
            self.was_booting = supervisor.booting
            return end
        finally:
            self._close()

    def _close(self) -> None:
        assert self.process.stdin
        assert self.process.stderr
        self.process.stdin.close()
        self.process.wait()
        self.process.stderr.close()
        self.ours.close()
        self._thread.join(5)
        self.theirs.close()
        os.close(self.queue)
        os.close(self.requests)


def test_a_guest_that_switches_itself_off() -> None:
    qemu = Qemu()
    qemu.end("guest-shutdown")
    assert qemu.supervise().reason is Reason.POWERED_OFF


def test_sigterm_presses_the_power_button() -> None:
    qemu = Qemu(obeys_powerdown=True)
    qemu.request(signal.SIGTERM)
    assert qemu.supervise().reason is Reason.STOPPED
    assert qemu.commands == ["qmp_capabilities", "system_powerdown"]


def test_the_power_button_is_pressed_again_until_the_guest_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervise, "_PRESS_AGAIN", 0.05)
    qemu = Qemu()
    qemu.request(signal.SIGTERM)
    end = qemu.supervise(grace=2)
    assert str(end) == "the guest did not shut down in 2 s"
    assert qemu.commands.count("system_powerdown") > 3
    assert qemu.commands[-1] == "quit"


def test_a_second_sigterm_ends_it_at_once() -> None:
    qemu = Qemu()
    qemu.request(signal.SIGTERM, signal.SIGTERM)
    end = qemu.supervise(grace=300)
    assert end.reason is Reason.KILLED
    assert str(end) == "SIGTERM came again"


def test_a_qemu_that_does_not_even_quit_is_left_to_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervise, "_QUIT_TIME", 0.1)
    qemu = Qemu(obeys_quit=False)
    qemu.request(signal.SIGTERM)
    assert str(qemu.supervise(grace=0)) == "SIGTERM came, without grace, and QEMU did not quit in 0.1 s"


def test_the_end_of_the_lease_ends_it_without_a_shutdown() -> None:
    qemu = Qemu()
    qemu.request(signals.LEASE_GONE)
    assert qemu.supervise().reason is Reason.LEASE
    assert qemu.commands == ["qmp_capabilities"]


def test_events_are_reported(capfd: pytest.CaptureFixture[str]) -> None:
    qemu = Qemu()
    for _ in range(2):  # the guest's reset, and SeaBIOS's
        qemu.event("RESET", {"guest": True, "reason": "guest-reset"})
    qemu.event("GUEST_PANICKED", {"action": "run"})
    qemu.event("BLOCK_IO_ERROR", {"action": "stop", "nospace": True, "reason": "No space left on device"})
    qemu.end("guest-shutdown")
    qemu.supervise()
    lines = capfd.readouterr().err.splitlines()
    assert lines[:2] == ["virtainer: guest rebooted", "virtainer: guest panicked"]
    assert lines[2].startswith("virtainer: guest paused, its disk failed: no space left in IMAGE_DIR.")


def test_the_end_of_dnsmasq_is_reported(capfd: pytest.CaptureFixture[str]) -> None:
    qemu = Qemu()
    dnsmasq = subprocess.Popen(["sh", "-c", "exit 3"])
    qemu.dnsmasq = dnsmasq.pid
    os.waitid(os.P_PID, dnsmasq.pid, os.WEXITED | os.WNOWAIT)
    qemu.end("guest-shutdown")
    qemu.supervise()
    said = "dnsmasq ended with exit code 3 (see /dnsmasq.log): the guest has no DHCP and no DNS"
    assert capfd.readouterr().err.splitlines()[0] == f"virtainer: {said}"
    dnsmasq.wait()


def test_finished_snapshots_are_passed_on() -> None:
    qemu = Qemu()
    for job, last in (
        ("save-s1", "pending"),
        ("load-s1", "aborting"),
        ("delete-s1", "pending"),
        ("load-a-b", "pending"),
    ):
        for status in ("running", last, "concluded"):
            qemu.event("JOB_STATUS_CHANGE", {"id": job, "status": status})
    qemu.end("guest-shutdown")
    qemu.supervise()
    assert qemu.snapshots == [("save", "s1"), ("load", "a-b")]


def test_the_output_of_qemu_is_reported_line_by_line(capfd: pytest.CaptureFixture[str]) -> None:
    qemu = Qemu("sh", "-c", "printf 'qemu: ' >&2; sleep 0.1; echo no memory >&2; exit 1")
    qemu.die()
    assert str(qemu.supervise()) == "QEMU ended by itself (exit code 1): qemu: no memory"
    assert capfd.readouterr().err == "virtainer: qemu: qemu: no memory\n"


RESET: tuple[str, dict[str, Any]] = ("RESET", {"guest": False, "reason": "host-qmp-system-reset"})
REBOOT: tuple[str, dict[str, Any]] = ("RESET", {"guest": True, "reason": "guest-reset"})
LOADED: tuple[str, dict[str, Any]] = ("JOB_STATUS_CHANGE", {"id": "load-s1", "status": "pending"})
SAVED: tuple[str, dict[str, Any]] = ("JOB_STATUS_CHANGE", {"id": "save-s1", "status": "pending"})


@pytest.mark.parametrize(
    ("events", "booting"),
    [
        ([], False),  # its first boot, or it was restored
        ([RESET], True),
        ([REBOOT], True),
        ([LOADED, RESET], True),
        ([RESET, SAVED], True),
        ([RESET, LOADED], False),  # its memory is the snapshot's
    ],
)
def test_a_guest_boots_after_a_reset(events: list[tuple[str, dict[str, Any]]], booting: bool) -> None:
    qemu = Qemu("sh", "-c", "cat; kill -ABRT $$")
    for each in events:
        qemu.event(*each)
    qemu.die()
    assert qemu.supervise().crashed
    assert qemu.was_booting is booting


def test_a_guest_has_booted_after_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervise, "_BOOT_SECONDS", 0.0)
    qemu = Qemu("sh", "-c", "cat; kill -ABRT $$")
    qemu.event(*RESET)
    qemu.die()
    assert qemu.supervise().crashed
    assert not qemu.was_booting


def test_a_vm_that_is_to_stop_does_not_boot() -> None:
    qemu = Qemu("sh", "-c", "cat; kill -ABRT $$")
    qemu.event(*RESET)
    threading.Timer(0.2, qemu.request, [signal.SIGTERM]).start()
    threading.Timer(0.4, qemu.die).start()
    assert qemu.supervise().crashed
    assert not qemu.was_booting


CRASH = End(Reason.QEMU, "QEMU ended by itself (SIGABRT): an assertion", crashed=True)


@pytest.mark.parametrize(
    ("end", "environment", "kvm", "again"),
    [
        (CRASH, {}, None, True),
        (CRASH, {"TEMPLATE": "/template", "LINGER": "on"}, None, True),
        (CRASH, {"TEMPLATE_SAVE": "on"}, None, False),
        (CRASH, {}, 5, False),
        (End(Reason.QEMU, "QEMU was killed (SIGKILL)"), {}, None, False),
        (End(Reason.POWERED_OFF, "the guest switched itself off"), {}, None, False),
    ],
    ids=["booted", "a clone", "becomes a template", "KVM", "killed", "off"],
)
def test_only_an_emulator_that_crashes_is_started_again(
    end: End,
    environment: dict[str, str],
    kvm: int | None,
    again: bool,
) -> None:
    assert run.boots_again(end, Settings.from_env(environment), kvm) is again


def test_a_qemu_with_added_devices_is_not_started_again() -> None:
    assert run.boots_again(CRASH, Settings.from_env({}), None)
    machine.DEVICES_ADDED.touch()
    assert not run.boots_again(CRASH, Settings.from_env({}), None)


def test_orphans_are_reaped() -> None:
    qemu = Qemu()
    orphan = subprocess.Popen(["true"])
    os.waitid(os.P_PID, orphan.pid, os.WEXITED | os.WNOWAIT)
    qemu.end("guest-shutdown")
    qemu.supervise()
    with pytest.raises(ChildProcessError):
        os.waitpid(orphan.pid, 0)
    orphan.wait()


def test_the_end_of_stdin_is_a_request() -> None:
    reader, writer = os.pipe()
    before = {number: signal.getsignal(number) for number in (*signals.STOP, signals.LEASE_GONE)}
    signals.end_at_once()

    def end_it() -> None:
        os.close(writer)
        threading.Event().wait(60)

    try:
        signals.watch_lease(reader)
        os.write(writer, b"means nothing")
        with pytest.raises(End) as caught:
            end_it()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reader)
    assert caught.value.reason is Reason.LEASE


def test_a_guest_that_switches_itself_off_may_be_started_again(capfd: pytest.CaptureFixture[str]) -> None:
    qemu = Qemu()
    qemu.event("SHUTDOWN", GUEST)
    qemu.event("RESUME", {})
    threading.Timer(0.2, qemu.end, ["guest-shutdown"]).start()
    assert qemu.supervise(linger=True).reason is Reason.POWERED_OFF
    assert [line for line in capfd.readouterr().err.splitlines() if "guest" in line] == [
        "virtainer: guest switched itself off",
        "virtainer: guest runs again",
        "virtainer: guest switched itself off",
    ]


def test_a_stop_ends_one_that_has_switched_itself_off() -> None:
    qemu = Qemu()
    qemu.event("SHUTDOWN", GUEST)
    threading.Timer(0.2, qemu.request, [signal.SIGTERM]).start()
    assert qemu.supervise(linger=True).reason is Reason.STOPPED
    assert qemu.commands[-1] == "quit"


@pytest.mark.parametrize("reason", [Reason.POWERED_OFF, Reason.QEMU])
def test_a_vm_that_ended_is_kept_until_a_signal_with_linger(
    reason: Reason, capfd: pytest.CaptureFixture[str]
) -> None:
    queue, requests_ = os.pipe()
    os.write(requests_, bytes([signal.SIGCHLD]))
    threading.Timer(0.2, os.write, [requests_, bytes([signals.LEASE_GONE])]).start()
    supervise.linger(End(reason, "why"), queue)
    assert capfd.readouterr().err == "virtainer: over: why\n"
    os.close(queue)
    os.close(requests_)


def test_a_vm_that_was_stopped_is_not_kept_with_linger() -> None:
    supervise.linger(End(Reason.KILLED, "why"), -1)


def test_the_end_of_the_ssh_session_is_reported() -> None:
    qemu = Qemu()
    for port, is_open in (("other", False), ("line", True), ("line", False)):
        qemu.event("VSERPORT_CHANGE", {"id": port, "open": is_open})
    qemu.end("guest-shutdown")
    qemu.supervise()
    assert qemu.snapshots == [("line", "closed")]


def test_repeated_panics_are_reported_a_few_times(capfd: pytest.CaptureFixture[str]) -> None:
    qemu = Qemu()
    event = json.dumps({"event": "GUEST_PANICKED", "data": {"action": "run"}}).encode() + b"\n"
    qemu.theirs.sendall(event * 500)  # one by one, they would not fit into the socket's buffer
    qemu.end("host-qmp-quit")
    assert qemu.supervise().reason is Reason.QUIT
    said = capfd.readouterr().err
    assert 20 <= said.count("virtainer: guest panicked\n") < 30
    assert said.count("virtainer: guest: too many lines, further ones are not shown\n") >= 1


def test_endless_output_of_qemu_is_bounded(capfd: pytest.CaptureFixture[str]) -> None:
    talks = "yes 'virtio: bogus' | head -n 5000 >&2; head -c 100000 /dev/zero | tr '\\0' x >&2; cat"
    qemu = Qemu("sh", "-c", talks)
    threading.Timer(1.0, qemu.end, ["host-qmp-quit"]).start()
    assert qemu.supervise().reason is Reason.QUIT
    said = capfd.readouterr().err
    assert 100 <= said.count("virtainer: qemu: virtio: bogus\n") < 150
    assert len(said) < 20_000
