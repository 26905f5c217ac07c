"""Failures that users see: one message with what was tried, what was seen and what to do."""

import json
import os
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_virtainers import (
    BootError,
    BootTimeout,
    GuestPanic,
    GuestStalled,
    ImageError,
    SpecError,
    StoreError,
    VMFactory,
    VMGone,
)
from pytest_virtainers.config.settings import Settings, environment, resolve
from pytest_virtainers.config.spec import merge
from pytest_virtainers.engine.docker.engine import DockerEngine
from pytest_virtainers.launching.build import build_launcher
from pytest_virtainers.launching.launcher import Launcher
from pytest_virtainers.support.progress import SILENT
from tests.vm.processes import console_of


def containers(engine: DockerEngine, name: str) -> list[object]:
    return list(engine.api.containers(all=True, filters={"label": f"virtainers.vm={name}"}))


def test_more_memory_than_the_host_has_is_refused(vm_factory: VMFactory) -> None:
    with pytest.raises(SpecError, match=r"^big: ram=1048576M is more than the engine's host has \(\d+M\)$"):
        vm_factory("big", ram="1T")


def test_an_unknown_image_is_reported_before_anything_starts(vm_factory: VMFactory) -> None:
    with pytest.raises(ImageError, match="there is no guest image 'debian-31'; did you mean 'debian-13'"):
        vm_factory(image="debian-31")


def test_a_truncated_image_is_refused(vm_factory: VMFactory, guest_disk: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.qcow2"
    with guest_disk.open("rb") as whole:
        cut.write_bytes(whole.read(64 * 1024 * 1024))
    with pytest.raises(
        ImageError, match=r"cut\.qcow2: it is damaged or cut short: qemu-img check reports more errors than"
    ):
        vm_factory(image=str(cut))


def test_an_overlay_is_refused_as_an_image(
    vm_factory: VMFactory, engine_cli: list[str], runtime_image: str, tmp_path: Path
) -> None:
    make = "qemu-img create -q -u -f qcow2 -F raw -b /etc/shadow /tmp/overlay 1M && cat /tmp/overlay"
    limits = ["--ulimit", "nofile=1024", "--ulimit", "nproc=4096"]
    command = [*engine_cli, "run", "--rm", *limits, "--entrypoint", "sh", runtime_image, "-c", make]
    overlay = subprocess.run(command, capture_output=True, check=True).stdout
    (tmp_path / "overlay.qcow2").write_bytes(overlay)
    with pytest.raises(ImageError, match="it is an overlay of /etc/shadow: make it whole first, with qemu-img"):
        vm_factory(image=str(tmp_path / "overlay.qcow2"))


@pytest.fixture
def small_store(engine: DockerEngine, request: pytest.FixtureRequest) -> Iterator[str]:
    """Create a volume on a tmpfs with the mount options of the test."""
    name = f"virtainers-test-{time.time_ns()}"
    options = {"type": "tmpfs", "device": "tmpfs", "o": request.param}
    engine.api.create_volume(name, driver="local", driver_opts=options)
    yield name
    engine.api.remove_volume(name)


def with_store(store: str) -> Settings:
    import os

    return resolve([environment({**os.environ, "VIRTAINER_STORE": store})])


@pytest.mark.parametrize("small_store", ["size=48m"], indirect=True)
def test_a_full_disk_of_the_engine_is_reported(small_store: str, guest_disk: Path) -> None:
    with (
        build_launcher(with_store(small_store), SILENT) as launcher,
        pytest.raises(StoreError, match=rf"(?s)copying .*disk\.qcow2 .*is full|{small_store}.* is full") as caught,
    ):
        launcher.guests.get(str(guest_disk))
    assert "--virtainer-store" in str(caught.value)


@pytest.mark.parametrize("small_store", ["size=48m,ro"], indirect=True)
def test_a_read_only_store_is_reported(small_store: str, guest_disk: Path) -> None:
    with (
        build_launcher(with_store(small_store), SILENT) as launcher,
        pytest.raises(StoreError, match=rf"(?s)The store \({small_store}\) is read-only: choose another one"),
    ):
        launcher.guests.get(str(guest_disk))


def test_a_missing_store_directory_is_reported() -> None:
    with (
        build_launcher(with_store("/nonexistent/store"), SILENT) as launcher,
        pytest.raises(StoreError, match="the store /nonexistent/store cannot be opened"),
    ):
        launcher.guests.get("debian-13")


def test_a_boot_that_takes_too_long_is_reported(launcher: Launcher, settings: Settings, engine: DockerEngine) -> None:
    shape = {"name": "too-slow", "user_data": {"bootcmd": ["sleep 600"]}}
    with pytest.raises(
        BootTimeout, match=r"too-slow did not let us log in over SSH within 15 s\. The last try: "
    ) as caught:
        launcher.launch(merge(settings.shape, {**shape, "boot_timeout": 15.0, "template": False}))
    assert "The last lines of its console:\n  | " in str(caught.value)
    assert "boot_timeout" in str(caught.value)
    assert containers(engine, "too-slow") == []


def test_a_container_killed_during_boot_is_reported(vm_factory: VMFactory, engine: DockerEngine) -> None:
    def kill() -> None:
        running = {"label": "virtainers.vm=killed-early", "status": "running"}
        while not (found := engine.api.containers(filters=running)) or not console_of(engine, found[0]["Id"]):
            time.sleep(0.1)
        engine.api.kill(found[0]["Id"])

    killer = threading.Thread(target=kill)
    killer.start()
    began = time.monotonic()
    with pytest.raises(VMGone, match=r"killed-early has ended: .*The last lines of its console:") as caught:
        vm_factory("killed-early", template=False)
    killer.join()
    assert time.monotonic() - began < 150, str(caught.value)  # it would wait for 300
    deadline = time.monotonic() + 60  # the engine removes it
    while containers(engine, "killed-early"):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.thorough
def test_a_kernel_that_hangs_is_booted_once_more(
    launcher: Launcher, engine: DockerEngine, settings: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    report = "echo 'rcu: (detected by 0, t=5252 jiffies, g=5, q=1 ncpus=1)' >/dev/console"
    shape = {"name": "hung", "template": False, "user_data": {"bootcmd": [report, report]}}
    with pytest.raises(GuestStalled, match=r"hung: the guest's kernel hangs .*The last lines of its console:\n  \| "):
        launcher.launch(merge(settings.shape, shape))
    assert (
        capfd.readouterr().err.count("the kernel of hung (debian-13) hung while it booted: booting again, once") == 1
    )
    assert containers(engine, "hung") == []


def test_cloud_init_errors_are_reported(vm_factory: VMFactory) -> None:
    with pytest.raises(BootError, match="cloud-init in vm reports errors; look at user_data, packages and run_comm"):
        vm_factory(run_commands=["exit 3"])


def test_a_kernel_panic_is_reported_at_once(vm_factory: VMFactory) -> None:
    vm = vm_factory("panicking")
    began = time.monotonic()
    with pytest.raises(GuestPanic, match="panicking: Kernel panic - not syncing: sysrq triggered crash"):
        vm.run("echo c >/proc/sysrq-trigger; sleep 600", sudo=True)
    assert time.monotonic() - began < 45  # a guest that only does not answer counts as hanging after 50
    with pytest.raises(GuestPanic):
        vm.run("true")


@pytest.mark.alone  # it must answer in time
@pytest.mark.each_engine
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may change the bridge's address")
def test_a_bridge_that_gets_another_address_delays_nothing(launcher: Launcher, settings: Settings) -> None:
    """The bridge of a Podman network does that when containers are added or removed; here it happens on any
    engine."""
    spec = merge(settings.shape, {"ram": 512, "disk": 3 * 1024, "cpus": 2, "template": True})
    vm = launcher.launch(spec)
    assert vm.machine.endpoint.direct, "the address belongs to another host"
    route = subprocess.run(["ip", "-j", "route", "get", vm.ip], capture_output=True, check=True).stdout
    quiet, took = [], []  # without a change, and with one
    for number in range(6):
        began = time.monotonic()
        vm.run("sleep 1; echo answered")
        quiet.append(time.monotonic() - began)
        address = f"02:00:00:00:{time.time_ns() % 256:02x}:{number:02x}"
        change = ["ip", "link", "set", "dev", json.loads(route)[0]["dev"], "address", address]
        timer = threading.Timer(0.3, subprocess.run, [change], {"check": True})
        timer.start()
        began = time.monotonic()
        vm.run("sleep 1; echo answered")
        took.append(time.monotonic() - began)
        timer.join()
    launcher.discard(vm)
    # Otherwise each one is delayed by five seconds or more; a busy host may delay some.
    assert statistics.median(took) < statistics.median(quiet) + 4, (quiet, took)
