"""Devices that are added and removed, the console, the screen and the keyboard."""

import os
import pty
import select
import shlex
import string
import struct
import subprocess
import time
import zlib
from pathlib import Path

import pytest

from pytest_virtainers import VM, SnapshotError, VirtainerError, VMGone, WaitTimeout


def test_disks_are_added_and_removed(session_vm: VM) -> None:
    disk = session_vm.disks.add("64M")
    assert session_vm.run(["blockdev", "--getsize64", disk.path], sudo=True).stdout == f"{64 * 2**20}\n"
    session_vm.run(
        f"mkfs.ext4 -q {disk.path} && mount {disk.path} /mnt && echo hi >/mnt/file && umount /mnt", sudo=True
    )
    other = session_vm.disks.add(32)
    assert other.path != disk.path
    for each in (disk, other):
        session_vm.disks.remove(each)
        session_vm.wait_until_fails(["test", "-e", each.path])


def test_cards_are_added_and_removed(session_vm: VM) -> None:
    nic = session_vm.nics.add()
    find = f"ip -o link | grep -i {nic.mac} | cut -d: -f2"
    name = session_vm.wait_until_succeeds(f"{find} | grep .").stdout.strip()
    session_vm.run(f"ip link set {name} up", sudo=True)
    session_vm.wait_until_succeeds(f"cat /sys/class/net/{name}/carrier | grep 1")
    session_vm.wait_until_succeeds(f"ip -4 addr show dev {name} | grep 'inet 10[.]'")
    assert session_vm.run(f"ip route show default dev {name}").stdout == "", "answers would use that route"
    session_vm.nics.link_down(nic)
    session_vm.wait_until_succeeds(f"cat /sys/class/net/{name}/carrier | grep 0")
    session_vm.nics.link_up(nic)
    session_vm.wait_until_succeeds(f"cat /sys/class/net/{name}/carrier | grep 1")
    session_vm.nics.remove(nic)
    session_vm.wait_until_fails(f"{find} | grep .")


@pytest.mark.virtainer(nics=["devices"])
def test_restore_removes_devices_that_were_added_since(vm: VM) -> None:
    card, devices = vm.nics["devices"], "ls /sys/class/net; ls /sys/block"
    disk = vm.disks.add(32)
    with pytest.raises(
        SnapshotError, match=rf"snapshots do not include added disks \({disk.name}\): remove them first"
    ):
        vm.snapshot()
    vm.disks.remove(disk)
    vm.pause()
    with pytest.raises(VMGone, match="it is paused"):
        vm.snapshot()
    vm.resume()
    before = vm.run(devices).stdout
    snapshot = vm.snapshot()
    for halt in (None, vm.pause, vm.shutdown):
        vm.disks.add(32)
        vm.nics.add()
        assert vm.run(devices).stdout != before
        if halt is not None:
            halt()
        vm.restore(snapshot)
        assert vm.run(devices).stdout == before
        assert vm.nics == {"devices": card}
        assert card.ip in vm.run(["ip", "addr", "show", card.device]).stdout
    vm.nics.remove(card)
    with pytest.raises(SnapshotError, match=f"cannot restore {snapshot.name}: network cards were removed since"):
        vm.restore(snapshot)
    assert vm.run("true").ok, "it continues"


def test_without_its_cable_the_guest_receives_nothing(session_vm: VM) -> None:
    with session_vm.popen("while :; do cat /sys/class/net/eth0/carrier; sleep 0.2; done >/tmp/carrier"):
        session_vm.wait_until_succeeds("grep 1 /tmp/carrier")
        session_vm.nics.link_down()
        time.sleep(session_vm.scaled(0.5))
        session_vm.nics.link_up()
        session_vm.wait_until_succeeds("tail -n1 /tmp/carrier | grep 1")
    assert "0\n" in session_vm.read_text("/tmp/carrier")


def test_the_console_accepts_input(session_vm: VM) -> None:
    session_vm.run("systemctl stop serial-getty@ttyS0", sudo=True)
    session_vm.popen("head -n1 </dev/ttyS0 >/tmp/heard; echo thanks >/dev/ttyS0", sudo=True)
    session_vm.wait_until_succeeds("pgrep -x head")
    session_vm.console.send("hello\n")
    session_vm.wait_for_console(r"^thanks$")
    assert session_vm.read_text("/tmp/heard") == "hello\n"
    session_vm.run("systemctl start serial-getty@ttyS0", sudo=True)


def test_expect_matches_answers_on_the_console(session_vm: VM) -> None:
    session_vm.console.send("\n")
    session_vm.console.expect(r"login: ", timeout=6)
    session_vm.console.send("unknown\n")
    session_vm.console.expect(r"Password: ", timeout=6)
    session_vm.console.send("\n")
    with pytest.raises(WaitTimeout, match=r"'Welcome to Mars' on the console of vm"):
        session_vm.console.expect("Welcome to Mars", timeout=1 / session_vm.scaled(1))


def test_the_console_opens_in_a_terminal(session_vm: VM) -> None:
    master, slave = pty.openpty()
    process = subprocess.Popen(
        shlex.split(session_vm.access.console_command), stdin=slave, stdout=slave, stderr=slave
    )
    os.close(slave)
    seen = b""
    while b"Ctrl-] to leave" not in seen:
        seen += os.read(master, 4096)
    while b"login: " not in seen:
        if select.select([master], [], [], 5)[0]:
            seen += os.read(master, 4096)
        else:  # the last one may have arrived before the terminal was ready
            os.write(master, b"\r")
    os.write(master, b"\x1d")
    assert process.wait(60) == 0
    os.close(master)


def pixels(png: Path) -> tuple[int, int, bytes]:
    data, at, body = png.read_bytes(), 8, b""
    width, height = struct.unpack(">II", data[16:24])
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        body += data[at + 8 : at + 8 + length] if kind == b"IDAT" else b""
        at += length + 12
    return width, height, zlib.decompress(body)


def test_the_screen_shows_what_is_typed(session_vm: VM, tmp_path: Path) -> None:
    first = pixels(session_vm.screen.screenshot(tmp_path / "before.png"))
    assert first[0] >= 640
    assert first[1] >= 400
    session_vm.screen.type("Hello,(World)!")  # at the login prompt
    session_vm.wait_until_succeeds("grep -aF 'Hello,(World)!' /dev/vcs1", sudo=True)
    session_vm.screen.send_keys("ctrl-u", "a", "b", "backspace")
    session_vm.wait_until_succeeds("fold -w80 /dev/vcs1 | grep -aE '(login: |^)a +$'", sudo=True)
    assert pixels(session_vm.screen.screenshot(tmp_path / "after.png")) != first
    with pytest.raises(ValueError, match="a US keyboard has no key for 'ü'"):
        session_vm.screen.type("ü")


def arrived(vm: VM, terminal: str, text: str) -> str:
    """Return what `cat` has read from a terminal: as much as `text`, or until no more arrives."""
    seen, quiet = "", 0
    while len(seen) < len(text) and quiet < 60:
        before, seen = seen, vm.run(["cat", f"/tmp/{terminal}"], sudo=True).stdout
        quiet = quiet + 1 if seen == before else 0
        time.sleep(0.5)
    return seen


@pytest.mark.parametrize(
    ("terminal", "login", "lines"),
    [
        pytest.param("tty1", "getty@tty1", 2, marks=pytest.mark.thorough),
        ("ttyS0", "serial-getty@ttyS0", 20),
    ],
)
def test_a_long_text_is_typed_completely(session_vm: VM, terminal: str, login: str, lines: int) -> None:
    printable = string.ascii_letters + string.digits + string.punctuation + " "
    text = "".join((printable * 6)[number : number + 499] + "\n" for number in range(lines))
    session_vm.run(["systemctl", "stop", login], sudo=True)
    with session_vm.popen(f"exec cat </dev/{terminal} >/tmp/{terminal}", sudo=True):
        session_vm.wait_until_succeeds(["pgrep", "-x", "cat"])
        if terminal == "tty1":
            session_vm.screen.type(text)
        else:
            session_vm.console.send(text)
        assert arrived(session_vm, terminal, text) == text
    session_vm.run(["systemctl", "start", login], sudo=True)


def test_a_paused_machine_accepts_no_keys(session_vm: VM) -> None:
    session_vm.pause()
    try:
        with pytest.raises(VMGone, match=r"vm does not run: it is paused"):
            session_vm.screen.type("lost")
    finally:
        session_vm.resume()


def test_qmp_returns_results_and_raises_refusals(session_vm: VM) -> None:
    assert session_vm.qmp("query-status")["status"] == "running"
    with pytest.raises(VirtainerError, match="vm: QEMU refuses set_link: Device 'none' not found"):
        session_vm.qmp("set_link", name="none", up=True)
