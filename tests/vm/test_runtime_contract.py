"""The runtime contract, row by row, only through an engine's command line.

Most rows need no operating system: `tiny` is a guest of one boot sector that is controlled over the serial line.
Debian boots in one container, and once more where its overlay is used again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import lzma
import os
import shlex
import signal
import subprocess
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
from tests.vm.plain_container import BOOT, CAPABILITIES, FIRMWARE, LEAST, LIMITS, OWNED, TUN, Container, new_network

# Prints `>` on a separate line (engines log whole lines), then echoes its input; `o` powers off (ACPI),
# `p` panics (pvpanic), `r` resets (keyboard controller).
TINY = bytes.fromhex(
    "fa"  # cli: the firmware's serial console must not read the input
    "baf803 b03e ee b00a ee"  # print '>'
    "bafd03 ec a801 74f8"  # wait for a byte
    "baf803 ec ee"  # echo it
    "3c6f 7410 3c72 7413 3c70 75e7"  # o, r, p
    "ba0505 b001 ee ebdf"  # panic, and wait again
    "ba0406 b80020 ef"  # power off
    "b0fe e664 f4"  # reset
)


@contextlib.contextmanager
def starter(engine_cli: list[str], runtime_image: str) -> Iterator[Callable[..., Container]]:
    """Return a function that starts a container with options of `docker run`; all are removed at the end."""
    names = []

    def start(*options: str, entry: tuple[str, ...] = (), rights: list[str] = LEAST) -> Container:
        container = Container(engine_cli, f"contract-{uuid.uuid4().hex[:8]}")
        names.append(container.name)
        container.engine(
            "run", "-d", "--name", container.name, *OWNED, *LIMITS, *rights, *options, runtime_image, *entry
        )
        return container

    yield start
    # Podman's `rm --force` first waits ten seconds for a container to stop.
    for command in (["kill"], ["rm", "-f", "-v"]):
        subprocess.run([*engine_cli, *command, *names], capture_output=True, check=False)


@pytest.fixture
def start(engine_cli: list[str], runtime_image: str) -> Iterator[Callable[..., Container]]:
    """Start containers for one test: an unused VM would cost a processor."""
    with starter(engine_cli, runtime_image) as start:
        yield start


@pytest.fixture(scope="module")
def start_shared(engine_cli: list[str], runtime_image: str) -> Iterator[Callable[..., Container]]:
    """Start containers for all tests of this file."""
    with starter(engine_cli, runtime_image) as start:
        yield start


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a raw disk with a guest of one sector."""
    path = tmp_path_factory.mktemp("guest") / "tiny.img"
    path.write_bytes(TINY.ljust(510, b"\0") + b"\x55\xaa" + bytes(2**20 - 512))
    return path


@pytest.fixture(scope="module")
def network(engine_cli: list[str]) -> Iterator[str]:
    with new_network(engine_cli, "10.214") as name:
        yield name


@pytest.fixture(scope="module")
def side_network(engine_cli: list[str]) -> Iterator[str]:
    """Create a second network. (Next to Docker's firewall, nothing passes internal networks of Podman.)"""
    with new_network(engine_cli, "10.215") as name:
        yield name


def mount(path: Path, where: str) -> tuple[str, str]:
    return ("-v", f"{path}:{where}:ro")


def running_tiny(start: Callable[..., Container], tiny: Path, *options: str, **more: Any) -> Container:
    container = start(*mount(tiny, "/image"), "-e", "RAM=64", *options, **more)
    container.wait_for(">\n")
    return container


# ---------------------------------------------------------------------------------------------- bad input


def refused(start: Callable[..., Container], *options: str, rights: list[str] = LEAST) -> tuple[int, str]:
    return start(*options, rights=rights).end()


def test_a_bad_setting_is_reported(start: Callable[..., Container]) -> None:
    assert refused(start, "-e", "RAM=1G") == (
        10,
        "virtainer: end: bad-setting: RAM='1G': allowed is a whole number of MiB, from 32",
    )


def test_a_missing_guest_disk_is_reported(start: Callable[..., Container]) -> None:
    code, line = refused(start)
    assert code == 11
    assert line.startswith("virtainer: end: bad-image: no guest disk: looked for IMAGE_URL, /image and /image.xz.")


def bad_disks(folder: Path) -> dict[str, tuple[Path, str]]:
    """Make guest disks that must be refused; name -> (path, complaint)."""
    for name in ("text", "empty", "whole", "truncated", "parasite"):
        (folder / name).touch()
    (folder / "text").write_text("hello\n")
    (folder / "folder").mkdir()

    def qemu_img(*words: str) -> None:
        subprocess.run(["qemu-img", *words], check=True, capture_output=True)

    (folder / "random").write_bytes(os.urandom(2**22))
    qemu_img("convert", "-f", "raw", "-O", "qcow2", str(folder / "random"), str(folder / "whole"))
    (folder / "truncated").write_bytes((folder / "whole").read_bytes()[: 2**21])
    qemu_img("create", "-u", "-f", "qcow2", "-F", "raw", "-b", "/etc/shadow", str(folder / "parasite"), "1M")
    complaints = {
        "text": "/image is neither a qcow2, VMDK or VHDX image nor a raw disk with a boot sector",
        "empty": "/image is empty",
        "folder": "/image is a directory: docker makes one when",
        "truncated": "/image is damaged or cut short: qemu-img check failed",
        "parasite": "/image is an overlay of /etc/shadow: make it whole first",
    }
    return {name: (folder / name, complaint) for name, complaint in complaints.items()}


def test_invalid_guest_disks_are_refused(start: Callable[..., Container], tmp_path: Path) -> None:
    for path, complaint in bad_disks(tmp_path).values():
        code, line = refused(start, *mount(path, "/image"))
        assert code == 11
        assert line.startswith(f"virtainer: end: bad-image: {complaint}")


def test_an_invalid_archive_is_refused(start: Callable[..., Container], tmp_path: Path) -> None:
    (tmp_path / "image.xz").write_bytes(b"hello")
    code, line = refused(start, *mount(tmp_path / "image.xz", "/image.xz"))
    assert (code, line.partition(",")[0]) == (11, "virtainer: end: bad-image: this is not an .xz file")


def test_an_unreachable_url_is_reported(start: Callable[..., Container]) -> None:
    code, line = refused(start, "-e", "IMAGE_URL=http://127.0.0.1:9/disk.qcow2")
    assert code == 11
    assert line.startswith("virtainer: end: bad-image: IMAGE_URL http://127.0.0.1:9/disk.qcow2 cannot be fetched")


def test_a_bad_seed_is_refused(start: Callable[..., Container], tiny: Path, tmp_path: Path) -> None:
    code, line = refused(start, *mount(tiny, "/image"), *mount(tmp_path, "/tmp/user-data"))
    assert code == 12
    assert line.startswith("virtainer: end: bad-seed: /tmp/user-data is a directory: docker makes one when")


@pytest.mark.each_engine
@pytest.mark.parametrize("options", [("--tmpfs", "/mounted:size=64k"), ("--tmpfs", "/mounted:ro")])
def test_no_space_for_the_overlay_is_reported(
    start: Callable[..., Container], tiny: Path, options: tuple[str, ...]
) -> None:
    code, line = refused(start, *mount(tiny, "/image"), *options)
    assert code == 13
    assert line.startswith("virtainer: end: storage: ")
    assert "IMAGE_DIR" in line


@pytest.mark.each_engine
def test_every_missing_right_is_named_with_its_flag(start: Callable[..., Container]) -> None:
    code, line = refused(start, rights=["--cap-drop", "ALL"])
    assert code == 14
    flags = [f"--cap-add {name}" for name in CAPABILITIES] + ["--device /dev/net/tun"]
    assert line.endswith(f"add to docker run: {' '.join(flags)}")


@pytest.mark.each_engine
def test_missing_forwarding_is_reported(start: Callable[..., Container], tiny: Path) -> None:
    code, line = refused(start, *mount(tiny, "/image"), rights=[*LEAST, "--sysctl", "net.ipv4.ip_forward=0"])
    assert code == 14
    assert "docker run --sysctl net.ipv4.ip_forward=1" in line


def test_missing_kvm_is_reported(start: Callable[..., Container], tiny: Path) -> None:
    code, line = refused(start, *mount(tiny, "/image"), "-e", "ACCEL=kvm")  # no --device /dev/kvm
    assert code == 14
    assert line.startswith("virtainer: end: privilege: ACCEL=kvm is impossible here: ")


@pytest.mark.each_engine
def test_an_inner_network_that_overlaps_the_outer_one_is_refused(start: Callable[..., Container], tiny: Path) -> None:
    running = start(*mount(tiny, "/image"))
    # A rootless Podman does not report the address that it assigns.
    route = running.exec("ip", "-4", "route", "get", "192.0.2.1").split()
    cidr = route[route.index("src") + 1].rpartition(".")[0]
    code, line = refused(start, *mount(tiny, "/image"), "-e", f"CIDR={cidr}")
    assert code == 15
    assert line.startswith(f"virtainer: end: network: CIDR={cidr} overlaps the container's own network")


def test_no_space_for_the_memory_of_a_template_is_reported(start: Callable[..., Container], guest_disk: Path) -> None:
    room = ["--tmpfs", "/mounted:size=48m", "-e", "TEMPLATE_SAVE=on", "-e", "RAM=512"]
    code, line = start(*mount(guest_disk, "/image"), *room).end(FIRMWARE * 2)
    assert (code, line) == (
        13,
        "virtainer: end: storage: QEMU could not write its memory file (SIGBUS): no space left in IMAGE_DIR",
    )


def test_a_machine_that_qemu_refuses_is_reported(start: Callable[..., Container], tiny: Path) -> None:
    code, line = refused(start, *mount(tiny, "/image"), "-e", "RAM=16777216")
    assert code == 16
    assert line.startswith("virtainer: end: qemu-failed: QEMU ended by itself (exit code 1): ")


# ---------------------------------------------------------------------------------------------- settings


def test_every_setting_reaches_the_machine(start: Callable[..., Container], tiny: Path) -> None:
    env = {
        "CPU": "2",
        "VM_NAME": "alpha",
        "OS_VARIANT": "win10",
        "DISK_SIZE": "3G",
        "IMAGE_DIR": "/data",
        "CLOUD_INIT_DISK": "/data/seed.iso",
        "CIDR": "10.77.1",
        "DISK_CACHE": "unsafe",
        "ACCEL": "tcg",
    }
    options = [word for name, value in env.items() for word in ("-e", f"{name}={value}")]
    vm = running_tiny(start, tiny, "--tmpfs", "/data", *options)
    assert vm.qmp("query-memory-size-summary")["base-memory"] == 64 * 2**20
    assert len(vm.qmp("query-cpus-fast")) == 2
    assert vm.qmp("query-name") == {"name": "alpha"}
    assert vm.qmp("query-kvm")["enabled"] is False
    disk = next(drive["inserted"] for drive in vm.qmp("query-block") if drive["inserted"]["node-name"] == "disk")
    assert disk["image"]["virtual-size"] == 3 * 2**30
    assert disk["cache"]["no-flush"] is True
    assert {"local_image.qcow2", "seed.iso"} <= set(vm.exec("ls", "/data").split())
    assert "inet 10.77.1.1/24" in vm.exec("ip", "-o", "addr", "show", "virtainer0")
    assert "e1000" in vm.exec(
        "qmp", '{"execute": "human-monitor-command", "arguments": {"command-line": "info network"}}'
    )


@pytest.mark.parametrize("mode", ["none", "writethrough", "directsync"])
def test_cache_modes(start: Callable[..., Container], tiny: Path, mode: str) -> None:
    vm = running_tiny(start, tiny, "-e", f"DISK_CACHE={mode}")
    assert vm.qmp("query-status")["status"] == "running"


@pytest.mark.each_engine
def test_the_guest_disk_may_be_xz_a_url_or_a_symlink(
    start: Callable[..., Container], tiny: Path, tmp_path: Path, network: str
) -> None:
    (tmp_path / "tiny.xz").write_bytes(lzma.compress(tiny.read_bytes()))
    serve = ("-m", "http.server", "-d", "/served", "8000")
    start(
        *mount(tmp_path, "/served"),
        "--network",
        network,
        "--network-alias",
        "files",
        "--entrypoint",
        "python3",
        entry=serve,
    )
    for options in (
        mount(tmp_path / "tiny.xz", "/image.xz"),
        ("--network", network, "-e", "IMAGE_URL=http://files:8000/tiny.xz"),
        (*mount(tiny.parent, "/disks"), "--entrypoint", "sh", "--cap-add", "DAC_OVERRIDE"),
    ):
        link = ("-c", "ln -s /disks/tiny.img /image && exec virtainer") if "sh" in options else ()
        start(*options, "-e", "RAM=64", entry=link).wait_for(">\n")


# ---------------------------------------------------------------------------------------------- seed


@pytest.mark.parametrize(
    ("given", "user_data"),
    [
        ({"user-data": "#!/bin/sh\n", "meta-data": "instance-id: x\n"}, "#!/bin/sh\n"),
        ({"user-data": "#!/bin/sh\n"}, "#!/bin/sh\n"),
        ({"id_rsa.pub": "ssh-ed25519 AAAA me"}, '#cloud-config\nssh_authorized_keys: ["ssh-ed25519 AAAA me"]\n'),
        ({}, "#cloud-config\npassword: password\nchpasswd: {expire: false}\nssh_pwauth: true\n"),
    ],
    ids=["user-data and meta-data", "user-data", "id_rsa.pub", "password"],
)
def test_seeds_are_made_from_all_sources(
    start: Callable[..., Container], tiny: Path, tmp_path: Path, given: dict[str, str], user_data: str
) -> None:
    options: list[str] = []
    for name, text in given.items():
        (tmp_path / name).write_text(text)
        options += mount(tmp_path / name, f"/tmp/{name}")
    vm = running_tiny(start, tiny, *options)
    assert "Volume id: cidata" in vm.exec("isoinfo", "-d", "-i", "/cloud_init.iso")
    assert vm.exec("isoinfo", "-R", "-i", "/cloud_init.iso", "-x", "/user-data") == user_data
    meta_data = given.get("meta-data", "instance-id: localimage-01\nlocal-hostname: cloudimage\n")
    assert vm.exec("isoinfo", "-R", "-i", "/cloud_init.iso", "-x", "/meta-data") == meta_data
    assert ("WARNING: no SSH key" in vm.said) is (not given)


def test_a_ready_iso_takes_precedence(start: Callable[..., Container], tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "ready.iso").write_bytes(bytes(2**16))
    (tmp_path / "user-data").write_text("#!/bin/sh\n")
    vm = running_tiny(
        start,
        tiny,
        *mount(tmp_path / "ready.iso", "/tmp/cloud_init.iso"),
        *mount(tmp_path / "user-data", "/tmp/user-data"),
    )
    assert "virtainer: seed: ready ISO" in vm.said
    drives = {drive["inserted"]["node-name"]: drive["inserted"]["image"] for drive in vm.qmp("query-block")}
    assert drives["seed"]["virtual-size"] == 2**16


# ---------------------------------------------------------------------------------------------- rights


@pytest.mark.each_engine
@pytest.mark.parametrize(
    "rights",
    [LEAST, ["--privileged"], ["--cap-add", "NET_ADMIN", "--cap-add", "NET_RAW", *TUN]],
    ids=["least", "privileged", "the engine's default"],
)
def test_the_documented_rights_are_enough(
    start: Callable[..., Container], tiny: Path, rights: list[str], engine_cli: list[str], runtime_image: str
) -> None:
    # Inside another container an engine may lack rights that it would have to grant.
    able = subprocess.run(
        [*engine_cli, "run", "--rm", *LIMITS, *rights, "--entrypoint", "true", runtime_image],
        capture_output=True,
        check=False,
    )
    if b"unable to apply caps: operation not permitted" in able.stderr:
        pytest.skip(f"this engine cannot give {' '.join(rights)} to any container")
    vm = running_tiny(start, tiny, rights=rights)
    assert vm.qmp("query-status")["status"] == "running"
    owners = vm.exec("sh", "-c", "grep -l ^qemu-system /proc/[0-9]*/cmdline | xargs dirname | xargs stat -c %U")
    assert owners.split() == ["qemu"]


@pytest.mark.each_engine
def test_a_vm_runs_without_a_network(start: Callable[..., Container], tiny: Path) -> None:
    assert running_tiny(start, tiny, "--network", "none").qmp("query-status")["running"] is True


# ---------------------------------------------------------------------------------------------- console and ends


@pytest.mark.each_engine
def test_the_console_is_stdout_a_file_and_interactive(start: Callable[..., Container], tiny: Path) -> None:
    vm = running_tiny(start, tiny)
    for keys in (b"abc", b"def"):
        with subprocess.Popen(
            [*vm.cli, "exec", "-i", vm.name, "console"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as console:
            assert console.stdin
            assert console.stdout
            console.stdin.write(keys)
            console.stdin.flush()
            seen = b""
            while not seen.endswith(keys):
                piece = os.read(console.stdout.fileno(), 100)
                assert piece, seen
                seen += piece
            console.communicate(timeout=60)  # it ends with its input
    vm.exec("console", stdin="\n")
    vm.wait_for("abcdef\n")
    assert "abcdef" in vm.exec("cat", "/run/virtainer/console.log")
    assert "virtainer:" not in vm.console


@pytest.mark.each_engine
def test_the_guest_panics_reboots_and_powers_off(start: Callable[..., Container], tiny: Path) -> None:
    vm = running_tiny(start, tiny)
    vm.exec("console", stdin="p")
    vm.wait_for("virtainer: guest panicked")
    vm.exec("console", stdin="r")
    vm.wait_for("virtainer: guest rebooted")
    vm.wait_for(">\n", count=2)
    assert vm.said.count("guest rebooted") == 1
    vm.exec("console", stdin="o", check=False)
    assert vm.end() == (0, "virtainer: end: powered-off: the guest switched itself off")
    assert "p" in vm.console


@pytest.mark.each_engine
def test_events_are_json_for_programs(start: Callable[..., Container], tiny: Path) -> None:
    vm = running_tiny(start, tiny, "-e", "EVENTS=json")
    vm.exec("console", stdin="p")
    vm.wait_for('{"event": "guest-panicked"}\n')
    vm.exec("console", stdin="o", check=False)
    code, last = vm.end()
    end = {"event": "end", "reason": "powered-off", "detail": "the guest switched itself off", "crashed": False}
    assert (code, json.loads(last)) == (0, end)
    events = [json.loads(line) for line in vm.said.splitlines()]
    assert [each["event"] for each in events] == ["note", "note", "note", "started", "guest-panicked", "end"]
    started = events[3]
    assert 0 < started.pop("prepared_s") < 60
    assert started.pop("accel") in {"kvm", "tcg"}
    shape = {"name": "vm", "ram_mib": 64, "cpus": 1, "disk": "/image", "format": "raw"}
    assert started == {"event": "started", **shape}


def test_a_bad_setting_is_reported_as_json(start: Callable[..., Container]) -> None:
    code, line = refused(start, "-e", "RAM=1G", "-e", "EVENTS=json")
    assert (code, json.loads(line)["reason"]) == (10, "bad-setting")
    code, line = refused(start, "-e", "EVENTS=yes")
    assert (code, line) == (10, "virtainer: end: bad-setting: EVENTS='yes': allowed is text or json")


def test_a_guest_that_ignores_the_power_button_is_killed_after_the_grace_time(
    start: Callable[..., Container], tiny: Path
) -> None:
    vm = running_tiny(start, tiny, "-e", "SHUTDOWN_TIMEOUT=2")
    vm.signal("TERM")
    assert vm.end() == (2, "virtainer: end: killed: the guest did not shut down in 2 s")


@pytest.mark.each_engine
def test_a_second_signal_ends_it_at_once(start: Callable[..., Container], tiny: Path) -> None:
    vm = running_tiny(start, tiny)
    vm.signal("TERM")
    vm.wait_for("asking the guest to shut down")
    vm.signal("INT")
    assert vm.end(45) == (2, "virtainer: end: killed: SIGINT came again")


@pytest.mark.each_engine
def test_qmp_serves_many_and_quits(start: Callable[..., Container], tiny: Path) -> None:
    vm = running_tiny(start, tiny)
    command = [*vm.cli, "exec", vm.name, "qmp", '{"execute": "query-status"}']
    at_once = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(4)]
    assert [json.loads(process.communicate(timeout=120)[0])["return"]["status"] for process in at_once] == [
        "running"
    ] * 4
    assert "root" in vm.exec("stat", "-c", "%U %a", "/run/virtainer")
    vm.exec("qmp", '{"execute": "quit"}', check=False)  # which also ends the command
    assert vm.end() == (0, "virtainer: end: quit: a QMP command ended QEMU")


@pytest.mark.each_engine
def test_the_end_of_the_lease_ends_the_vm(
    start: Callable[..., Container], tiny: Path, engine_cli: list[str], runtime_image: str
) -> None:
    name = f"contract-{uuid.uuid4().hex[:8]}"
    options = [*LIMITS, *LEAST, *mount(tiny, "/image"), "-e", "RAM=64", "-e", "LEASE=stdin"]
    holder = subprocess.Popen(
        [*engine_cli, "run", "-i", "--name", name, *options, runtime_image],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # a rootless Podman is two processes
    )
    vm = Container(engine_cli, name)
    try:
        deadline = time.monotonic() + FIRMWARE
        with contextlib.suppress(AssertionError):
            while time.monotonic() < deadline and not vm.running():
                time.sleep(0.1)
        time.sleep(1)
        vm.wait_for(">\n")
        os.killpg(holder.pid, signal.SIGKILL)
        code, line = vm.end(45)
        assert (code, line.partition(",")[0]) == (3, "virtainer: end: lease-gone: the holder of the lease")
    finally:
        holder.kill()
        holder.communicate()
        vm.engine("rm", "-f", "-v", name)


@pytest.mark.each_engine
def test_a_lease_without_a_holder_ends_the_vm(start: Callable[..., Container], tiny: Path) -> None:
    code, line = refused(start, *mount(tiny, "/image"), "-e", "LEASE=stdin")
    assert code == 3
    assert line.startswith("virtainer: end: lease-gone: ")


@pytest.mark.each_engine
def test_stop_during_preparation_ends_at_once(start: Callable[..., Container], network: str) -> None:
    hang = ("-c", "import socket,time; s=socket.create_server(('', 8000)); c=s.accept(); time.sleep(600)")
    start("--network", network, "--network-alias", "slow", "--entrypoint", "python3", entry=hang)
    vm = start("--network", network, "-e", "IMAGE_URL=http://slow:8000/disk")
    vm.wait_for("virtainer: fetching")
    vm.signal("TERM")
    assert vm.end(45) == (0, "virtainer: end: stopped: SIGTERM came before the VM ran")


# ---------------------------------------------------------------------------------------------- overlay


@pytest.mark.each_engine
def test_an_overlay_of_another_guest_disk_is_refused(
    start: Callable[..., Container], tiny: Path, tmp_path: Path
) -> None:
    data = ("-v", f"{tmp_path}:/mounted")
    vm = running_tiny(start, tiny, *data)
    vm.exec("console", stdin="o", check=False)
    vm.end()
    vm.engine("start", vm.name)
    vm.wait_for(">\n", count=2)
    assert vm.said.count("virtainer: using the overlay /mounted/local_image.qcow2 again") == 1, "the same container"
    vm.exec("console", stdin="o", check=False)
    vm.end()
    vm = running_tiny(start, tiny, *data)
    assert "virtainer: using the overlay /mounted/local_image.qcow2 again" in vm.said, "another one"
    vm.exec("console", stdin="o", check=False)
    vm.end()
    other = tmp_path / "other.img"
    other.write_bytes(tiny.read_bytes()[:-1] + b"x")
    code, line = refused(start, *mount(other, "/image"), *data)
    assert code == 13
    assert "the overlay /mounted/local_image.qcow2 was made on another guest disk (" in line


# ---------------------------------------------------------------------------------------------- Debian


@dataclass
class Debian:
    vm: Container
    key: Path

    def ssh(self, command: str, seconds: float = 300, *, check: bool = True) -> str:
        relay = shlex.join([*self.vm.cli, "exec", "-i", self.vm.name, "relay", "22"])
        options = ["BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"]
        done = subprocess.run(
            [
                "ssh",
                "-n",
                "-i",
                self.key,
                *(f"-o{option}" for option in options),
                f"-oProxyCommand={relay}",
                "debian@vm",
                command,
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
        )
        assert done.returncode == 0 or not check, done.stderr
        return done.stdout

    def wait(self) -> None:
        deadline = time.monotonic() + BOOT
        while True:
            with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
                self.ssh("true", 60)
                return
            assert self.vm.running(), self.vm.said
            assert time.monotonic() < deadline, self.vm.console[-3000:]
            time.sleep(2)


@pytest.fixture(scope="module")
def debian(
    network: str, start_shared: Callable[..., Container], guest_disk: Path, tmp_path_factory: pytest.TempPathFactory
) -> Debian:
    folder = tmp_path_factory.mktemp("debian")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "id"], check=True)
    (folder / "mounted").mkdir()
    vm = start_shared(
        *mount(guest_disk, "/image"),
        *mount(folder / "id.pub", "/tmp/id_rsa.pub"),
        *("-v", f"{folder / 'mounted'}:/mounted", "--network", network, "--network-alias", "alpha"),
        *("-e", "VM_NAME=alpha", "-e", "CPU=2", "-e", "SHUTDOWN_TIMEOUT=300", "-e", "DISK_CACHE=unsafe"),
    )
    guest = Debian(vm, folder / "id")
    guest.wait()
    return guest


@pytest.fixture(scope="module")
def peer(network: str, start_shared: Callable[..., Container]) -> Container:
    """Run a plain container on the guest's network."""
    return start_shared(
        "--network", network, "--network-alias", "web", "--entrypoint", "python3", entry=("-m", "http.server", "80")
    )


PING = """
import socket, struct, sys
def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data)); total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP); s.settimeout(60); s.connect((sys.argv[1], 0))
head = lambda code: struct.pack("!BBHHH", 8, 0, code, 77, 1)
s.send(head(checksum(head(0) + b"virtainr")) + b"virtainr")
reply = s.recv(100); print(reply[20], reply[8])  # type 0 is an echo reply; its time to live shows who sent it
"""

UDP_SERVER = (
    "import socket; s=socket.socket(type=2); s.bind(('', 5000)); d, a = s.recvfrom(99); s.sendto(b'guest ' + d, a)"
)
UDP_CLIENT = """
import socket, sys, time
s = socket.socket(type=socket.SOCK_DGRAM); s.settimeout(1); s.connect((sys.argv[1], 5000))
for _ in range(30):
    s.send(b"hears")
    try: print(s.recv(99).decode()); break
    except OSError: time.sleep(1)
"""


@pytest.mark.each_engine
def test_the_guest_gets_its_address_name_and_disk(debian: Debian) -> None:
    assert "192.168.100.2/24" in debian.ssh("ip -o -4 addr show scope global")
    assert "52:54:00:76:69:01" in debian.ssh("ip neigh show 192.168.100.1")
    assert debian.ssh("hostname").strip() == "cloudimage"
    assert debian.ssh("lsblk -bdno SIZE /dev/vda").strip() == str(40 * 2**30)


@pytest.mark.each_engine
def test_all_protocols_reach_the_guest_at_the_containers_address(debian: Debian, peer: Container) -> None:
    tcp = "import socket,sys; print(socket.create_connection((sys.argv[1], 22), 60).recv(99))"
    assert "SSH-2.0-OpenSSH" in peer.exec("python3", "-c", tcp, "alpha")
    assert (
        peer.exec("python3", "-c", PING, debian.vm.address()) == "0 63\n"
    )  # one hop away: the guest, not the container
    debian.ssh(f"nohup python3 -c {shlex.quote(UDP_SERVER)} >/dev/null 2>&1 &")
    assert peer.exec("python3", "-c", UDP_CLIENT, "alpha") == "guest hears\n"


def test_the_relay_waits_a_moment_for_a_port(debian: Debian) -> None:
    began = time.monotonic()
    debian.vm.exec("relay", "4567", check=False)  # refused, each time that it is tried
    assert 2.5 < time.monotonic() - began < 60


@pytest.mark.each_engine
def test_the_guest_finds_others_by_name(debian: Debian, peer: Container) -> None:
    fetch = "import urllib.request; print(urllib.request.urlopen('http://{}/', timeout=120).status)"
    assert debian.ssh("getent hosts web.virtainer.internal").split()[0] == peer.address()
    assert debian.ssh("getent hosts web").split()[0] == peer.address()
    assert debian.ssh(f"python3 -c {shlex.quote(fetch.format('web.virtainer.internal'))}") == "200\n"


@pytest.mark.each_engine
def test_a_guest_that_connects_to_its_own_container_reaches_itself(debian: Debian) -> None:
    code = f"import socket; print(socket.create_connection(({debian.vm.address()!r}, 22), 60).recv(99))"
    assert "SSH-2.0-OpenSSH" in debian.ssh(f"python3 -c {shlex.quote(code)}")


def test_discard_reaches_the_overlay(debian: Debian) -> None:
    def size() -> int:
        return int(debian.vm.exec("stat", "-c", "%b", "/mounted/local_image.qcow2")) * 512

    debian.ssh("head -c 100M /dev/urandom > big && sync")
    full = size()
    debian.ssh("rm big && sync && sudo fstrim /")
    assert size() < full - 80 * 2**20


@pytest.mark.each_engine
def test_a_card_joins_a_network_with_faults_and_captures(
    side_network: str, debian: Debian, start: Callable[..., Container]
) -> None:
    other = start("--network", side_network, "--entrypoint", "sleep", entry=("600",))
    others = other.exec("cat", "/sys/class/net/eth0/address").strip()
    before = debian.vm.exec("sh", "-c", "cat /sys/class/net/*/address").split()
    debian.vm.engine("network", "connect", side_network, debian.vm.name)
    (mac,) = set(debian.vm.exec("sh", "-c", "cat /sys/class/net/*/address").split()) - set(before)

    joined = json.loads(debian.vm.exec("device", "join", "nic1", mac))
    assert joined["mac"] == mac
    assert joined["mtu"] == 1500
    (address,) = joined["addresses"]
    card = f"$(ip -o link | grep {mac} | cut -d: -f2)"
    debian.ssh(f"sudo ip addr add {address} dev {card} && sudo ip link set {card} up")

    def reached(seconds: int = 20) -> int:
        """Return how many of three pings, one after another, are answered within some seconds."""
        ping = f"ping -c 1 -W {seconds} {other.address()}"
        return debian.ssh(f"for each in 1 2 3; do {ping}; done", check=False).count("bytes from")

    with subprocess.Popen(
        [*debian.vm.cli, "exec", "-i", debian.vm.name, "capture", mac],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as capture:
        assert capture.stderr
        assert b"listening" in capture.stderr.readline()
        assert reached() == 3
        recorded, _ = capture.communicate()  # it ends with its stdin
    assert recorded[:4] in {b"\xd4\xc3\xb2\xa1", b"\x4d\x3c\xb2\xa1"}
    assert bytes.fromhex(f"{mac.replace(':', '')}0800") in recorded, "frames of the guest"
    assert bytes.fromhex(f"{others.replace(':', '')}0800") in recorded, "and got"

    debian.vm.exec("wire", mac, json.dumps({"drop": {others: 1000}}))
    assert reached(2) == 0
    debian.vm.exec("wire", mac, "{}")
    assert reached() == 3
    debian.vm.exec("device", "remove", "nic1")
    debian.vm.engine("network", "disconnect", side_network, debian.vm.name)


@pytest.mark.thorough  # three boots
def test_a_reboot_a_stop_while_it_boots_and_a_second_start(debian: Debian, guest_disk: Path) -> None:
    digest = hashlib.sha256(guest_disk.read_bytes()).hexdigest()
    debian.ssh("echo kept | sudo tee /root/mark && sync")
    debian.ssh("sudo systemctl reboot", check=False)
    debian.vm.wait_for("virtainer: guest rebooted", BOOT)
    debian.vm.wait_for("Linux version", BOOT, count=2)
    debian.vm.signal("TERM")  # long before the guest listens to its power button
    assert debian.vm.end(BOOT) == (0, "virtainer: end: stopped: the guest shut down as requested")

    debian.vm.engine("start", debian.vm.name)
    debian.wait()
    assert "virtainer: using the overlay /mounted/local_image.qcow2 again (40.0 GiB)" in debian.vm.said
    assert debian.ssh("sudo cat /root/mark") == "kept\n"
    assert hashlib.sha256(guest_disk.read_bytes()).hexdigest() == digest
    debian.ssh("sudo systemctl poweroff", check=False)
    assert debian.vm.end(BOOT) == (0, "virtainer: end: powered-off: the guest switched itself off")
