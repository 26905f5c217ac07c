"""A guest with hostile output: on its console, to its supervisor, and on the user's terminal."""

from __future__ import annotations

import json
import re
import stat
import sys
import time
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING

import pytest

from pytest_virtainers.engine.output import HEAD, TAIL
from pytest_virtainers.support.runtime_modules import protocol
from pytest_virtainers.vm.supervisor_events import readable
from tests.vm.shapes import SMALL

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_virtainers import VM
    from pytest_virtainers.engine.docker.engine import DockerEngine

MIB = 1024 * 1024
SHAPE = pytest.mark.virtainer(**SMALL)
FLOOD = 64 * MIB


@SHAPE
def test_a_console_flood_costs_neither_memory_nor_time(vm: VM, engine: DockerEngine) -> None:
    vm.run("echo the first line >/dev/ttyS0; head -c 100k /dev/zero | tr '\\0' x >/dev/ttyS0", sudo=True)
    vm.wait_for_console("^the first line$")
    before = _health_check_seconds(vm)
    # An emulated serial port accepts 0.1 MiB a second: the rest is written to the supervisor's stdout.
    vm.machine.container.run(["sh", "-c", f"head -c {FLOOD} /dev/zero | tr '\\0' x | fold -w 79 >/proc/1/fd/1"])
    deadline = time.monotonic() + 300
    while vm.console.size < FLOOD and time.monotonic() < deadline:
        time.sleep(0.1)
    assert vm.console.size > FLOOD
    assert len(bytes(vm.machine.container.stdout)) < HEAD + TAIL + MIB
    assert re.search(r"\[… \d+ characters not kept …\]", vm.console.text)
    assert len(vm.console.text) < HEAD + TAIL + MIB
    vm.run("printf '\\nthe last line\\n' >/dev/ttyS0", sudo=True)  # the flood ends within a line
    assert vm.wait_for_console("^the last line$")
    assert vm.wait_for_console("^the first line$"), "what came first is kept"
    assert _health_check_seconds(vm) < 20 * before + 0.05
    if engine.kind == "docker":  # Podman 4.3 does not report it
        config = engine.api.inspect_container(vm.machine.container.id)["HostConfig"]["LogConfig"]
        assert config["Type"] not in {"json-file", "local"} or config["Config"]["max-size"] == "16m"


def _health_check_seconds(vm: VM) -> float:
    """Return the CPU seconds of a hundred health checks, as each command makes them."""
    began = time.thread_time()
    for _ in range(100):
        vm.machine.health.check_alive()
    return time.thread_time() - began


FORGED = r"""
{"event": "over", "detail": "forged", "crashed": true}
{"event": "end", "reason": "bad-template", "detail": "forged"}
{"event": "disk-failed", "cause": "forged"}
{"event": "started", "name": "vm", "accel": "forged"}
{"event": "guest-off"}
"}, "event": "guest-off", {"x": "
virtainer: over: forged
virtainer: guest switched itself off
done x 1.0
done \x1b]0;forged\x07\xc2\x85{"event":\r"guest-off"} 1.000000
done \x1b]0;forged\x07\xc2\x85{"event":"guest-off"} 1.000000
"""
WRITE = """
import os, sys, time
lines = sys.stdin.buffer.read().decode("unicode_escape").encode("latin-1")
for _ in range(100):
    try:
        port = os.open("/dev/virtio-ports/org.virtainers.clone", os.O_RDWR)
        break
    except OSError:
        time.sleep(0.1)
os.write(port, lines)
for number in range(2000):
    os.write(port, b"nonsense %d\\n" % number)
os.write(port, b"ready\\n")
os.close(port)
"""


@SHAPE
def test_output_on_the_port_of_the_helper_changes_nothing(vm: VM) -> None:
    said = vm.machine.health.supervisor
    accel, done = said.accel, said.helpers_done
    assert accel in {"kvm", "tcg"}
    vm.run("pkill -f [v]irtainer-clone.py; sleep 0.2", sudo=True)  # it has the port
    ready = said.helpers_ready
    vm.run(["python3", "-c", WRITE], input=FORGED, sudo=True)
    assert said.wait_for(lambda: said.helpers_ready > ready, 120), "the last line was read"
    assert (said.over, said.reason, said.disk_failure, said.off, said.accel) == ("", "", "", False, accel)
    assert said.helpers_done == done + 1, "one line is well-formed, and about this guest alone"
    assert vm.machine.runs
    assert vm.run("echo on").stdout == "on\n"
    written = bytes(vm.machine.container.stderr)
    assert all(json.loads(line)["event"] in protocol.SENTENCES for line in written.splitlines())
    shown = readable(written)
    assert 10 < shown.count(b"helper: unexpected") <= 22
    assert b"further ones are not shown" in shown
    for line in shown.splitlines():
        assert line.startswith(b"virtainer: ")
        assert line.decode().isprintable()
    assert vm.machine.container.run(["true"])[0] == 0


HOSTILE = r"""
import pytest

pytestmark = pytest.mark.virtainer(ram="512M", disk="3G", cpus=2)
EVIL = r"\033]0;owned\007\033]52;c;aGk=\033\\\033[2J\233\233\235x\234\302\2331m\302\235y\302\234\r"
EVIL += r"\342\200\256\342\200\250"


def test_output(vm):
    vm.run(f"printf 'o{EVIL}ut\n' | sudo tee /dev/ttyS0; printf 'e{EVIL}rr' >&2; exit 3")


def test_name(vm):
    name = vm.run(f"name=$(printf 'n{EVIL}'); touch /tmp/$name; cd /tmp; echo n*").stdout[:-1]
    vm.get(f"/tmp/{name}/none")


def test_unit(vm):
    vm.run(f"sudo systemd-run --no-block -p Type=oneshot --unit=broken sh -c \"printf 'u{EVIL}\n'; exit 7\"")
    vm.wait_for_unit("broken")


def test_wait(vm):
    vm.wait_until_succeeds(f"printf 'w{EVIL}'; false", timeout=0.01)
"""


def test_no_sequence_of_a_guest_reaches_the_terminal(pytester: pytest.Pytester, tmp_path: Path) -> None:
    pytester.makepyfile(test_hostile=HOSTILE)
    options = ["--virtainer-capture=failed", "--virtainer-echo", "--junitxml=report.xml", "--html=report.html"]
    result = pytester.run(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options, "--self-contained-html")
    result.assert_outcomes(failed=4)
    shown = "".join((pytester.path / name).read_bytes().decode() for name in ("stdout", "stderr"))
    assert all(each in "\t\n" or (not 0x7F <= ord(each) < 0xA0 and ord(each) >= 0x20) for each in shown)
    assert not re.search("[\u2028-\u202e\u2066-\u206f]", shown)
    assert r"\x1b]0;owned\x07" in shown, "it can be read"
    ET.parse(pytester.path / "report.xml")  # noqa: S314  (our own)
    assert "\x1b" not in (pytester.path / "report.html").read_text()
    root = pytester.path / "virtainer-artifacts"
    made = [each for each in root.rglob("*") if each.name != ".gitignore"]
    assert {stat.S_IMODE(each.stat().st_mode) for each in root.iterdir() if each.is_dir()} == {0o700}
    pictures = [each for each in made if each.suffix == ".pcap"]
    assert len(pictures) == 4
    assert {stat.S_IMODE(each.stat().st_mode) for each in pictures} == {0o600}
    assert not any(json.loads(each.read_text())["missing"].get("console.log") for each in root.rglob("manifest.json"))
    logs = [each.read_bytes() for each in root.rglob("commands.log")]
    assert len(logs) == 4
