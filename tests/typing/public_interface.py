"""The types of the public interface. mypy checks this file; nothing runs it."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from ipaddress import IPv4Network
from pathlib import Path
from typing import IO, Any, assert_type

import pytest_virtainers
from pytest_virtainers import VM, Network, Nic, Result, Snapshot, VMFactory
from pytest_virtainers.config.network_spec import NetworkSpec
from pytest_virtainers.config.spec import Spec
from pytest_virtainers.vm.access import Access
from pytest_virtainers.vm.console import Console
from pytest_virtainers.vm.disks import Disks
from pytest_virtainers.vm.faults import Faults
from pytest_virtainers.vm.hotplug import Disk
from pytest_virtainers.vm.log import CommandLog
from pytest_virtainers.vm.nics import Nics
from pytest_virtainers.vm.process import Process
from pytest_virtainers.vm.screen import Display, Screen
from pytest_virtainers.vm.tunnels import Address


def launching(vm_factory: VMFactory) -> None:
    assert_type(vm_factory(), VM)
    assert_type(vm_factory("db", ram="2G", cpus=2), VM)
    with pytest_virtainers.launch("debian-13", name="web", template=False) as vm:
        assert_type(vm, VM)
    vm_factory(rams="2G")  # type: ignore[call-arg]


def facts(vm: VM) -> None:
    assert_type(vm.name, str)
    assert_type(vm.spec, Spec)
    assert_type(vm.user, str)
    assert_type(vm.ip, str)
    assert_type(vm.ip6, str)
    assert_type(vm.network, Network)
    assert_type(vm.networks, tuple[Network, ...])
    assert_type(vm.log, CommandLog)
    assert_type(vm.log.text, str)
    assert_type(vm.scaled(1), float)
    vm.name = "other"  # type: ignore[misc]


def console(vm: VM) -> None:
    assert_type(vm.console, Console)
    assert_type(vm.console.text, str)
    assert_type(vm.console.expect("login:", timeout=5), re.Match[str])
    vm.console.send("root\n")


def commands(vm: VM) -> None:
    assert_type(vm.run("true"), Result)
    assert_type(
        vm.run(["id"], check=False, input=b"", timeout=1.5, env={"A": "b"}, cwd="/", sudo=True, user="root"), Result
    )
    vm.run("true", limit=5)  # type: ignore[call-arg]
    assert_type(vm.popen("sleep 60", sudo=True), Process)


def result(result: Result) -> None:
    assert_type(result.command, str)
    assert_type(result.exit_code, int)
    assert_type(result.stdout, str)
    assert_type(result.stderr, str)
    assert_type(result.stdout_bytes, bytes)
    assert_type(result.stderr_bytes, bytes)
    assert_type(result.duration, float)
    assert_type(result.ok, bool)
    assert_type(bool(result), bool)


def process(process: Process) -> None:
    with process as entered:
        assert_type(entered, Process)
    assert_type(process.command, str)
    assert_type(process.stdin, IO[bytes])
    assert_type(process.lines(timeout=1), Iterator[str])
    assert_type(process.poll(), int | None)
    assert_type(process.wait(timeout=1), Result)
    process.write("text")
    process.write(b"bytes")
    process.send_signal("USR1")
    process.send_signal(10)
    process.terminate()
    process.kill()


def files(vm: VM, tmp_path: Path) -> None:
    assert_type(vm.put(tmp_path, "/srv/", owner="root:root", timeout=5), str)
    assert_type(vm.get("/etc", str(tmp_path), special=True), Path)
    assert_type(vm.glob("/var/log/*"), list[str])
    assert_type(vm.read_text("/etc/hostname"), str)
    vm.write_text("/etc/motd", "hello", mode=0o600, owner="root")


def waits(vm: VM, count: Callable[[], int]) -> None:
    assert_type(vm.wait_for(count, timeout=1, what="the count"), int)
    assert_type(vm.wait_until_succeeds("true", timeout=1, sudo=True), Result)
    assert_type(vm.wait_until_fails(["false"]), Result)
    assert_type(vm.wait_for_console("login:"), re.Match[str])
    vm.wait_for_unit("nginx", timeout=5)
    vm.wait_for_port(80, host="db", timeout=5)
    vm.wait_for_closed_port(80)
    vm.wait_for_file("/srv/ready")
    vm.wait_for_cloud_init()


def power(vm: VM) -> None:
    vm.reboot(timeout=60)
    vm.reset()
    vm.shutdown(timeout=10)
    vm.crash()
    vm.start(timeout=60)
    vm.pause()
    vm.resume()
    assert_type(vm.qmp("query-status"), Any)


def snapshots(vm: VM) -> None:
    snapshot = vm.snapshot()
    assert_type(snapshot, Snapshot)
    assert_type(vm.snapshot("clean").name, str)
    assert_type(vm.snapshots(), list[str])
    vm.restore(snapshot)
    vm.restore("clean")
    vm.delete_snapshot(snapshot)
    vm.delete_snapshot("clean")


def tunnels(vm: VM) -> None:
    assert_type(vm.forward(80, host="db"), AbstractContextManager[Address])
    assert_type(vm.reverse(8080, guest_port=80), AbstractContextManager[int])
    with vm.forward(80) as url:
        assert_type(url.host, str)
        assert_type(url.port, int)


def disks(vm: VM) -> None:
    assert_type(vm.disks, Disks)
    disk = vm.disks.add("1G", timeout=5)
    assert_type(disk, Disk)
    assert_type(disk.path, str)
    assert_type(disk.size_mib, int)
    vm.disks.remove(disk)


def nics(vm: VM, network: Network) -> None:
    assert_type(vm.nics, Nics)
    mapping: Mapping[str, Nic] = vm.nics
    assert_type(vm.nics["lab"], Nic)
    nic = vm.nics.add(network, ip="dhcp")
    assert_type(nic, Nic)
    assert_type((nic.name, nic.mac, nic.device, nic.ip, nic.ip6), tuple[str, str, str, str, str])
    assert_type(nic.network, Network | None)
    assert_type(nic.mtu, int)
    vm.nics.link_down(nic)
    vm.nics.link_up()
    vm.nics.remove(mapping["lab"])


def screen(vm: VM, tmp_path: Path) -> None:
    assert_type(vm.screen, Screen)
    assert_type(vm.screen.screenshot(tmp_path / "x.png"), Path)
    vm.screen.send_keys("ctrl-alt-f2", "enter")
    vm.screen.type("text")
    vm.screen.click(1, 2, button="right")
    with vm.screen.vnc(port=5901) as display:
        assert_type(display, Display)
        assert_type((display.host, display.port, display.password), tuple[str, int, str])
    with vm.screen.novnc() as url:
        assert_type(url, str)


def faults(vm: VM) -> None:
    assert_type(vm.faults, Faults)
    with (
        vm.faults.fill_disk("/var", leave="10M"),
        vm.faults.set_time(datetime(2038, 1, 19, tzinfo=UTC)),
        vm.faults.set_time(0.5),
        vm.faults.stop_clock_sync(),
        vm.faults.block_network(),
        vm.faults.slow_disk(iops=10, bytes_per_second=1024),
    ):
        pass


def access(vm: VM) -> None:
    assert_type(vm.access, Access)
    assert_type(vm.access.ssh_command, str)
    assert_type(vm.access.ssh_config(), Path)
    assert_type(vm.access.console_command, str)
    assert_type(vm.access.testinfra, Any)
    assert_type(vm.access.ansible_vars(), dict[str, str])
    assert_type(vm.access.ansible_inventory(), Path)


def networks(network: Network, a: VM, b: VM, tmp_path: Path) -> None:
    assert_type(network.name, str)
    assert_type(network.engine_name, str)
    assert_type(network.spec, NetworkSpec)
    assert_type(network.subnet, IPv4Network | None)
    assert_type(network.ipv6, bool)
    assert_type(network.vms, tuple[VM, ...])
    with (
        network.partition({a}, b),
        network.lose(a, b, share=0.5),
        network.slow(a, rate="512kbit", delay=0.2, jitter=0.05),
        network.capture(tmp_path / "wire.pcap"),
    ):
        network.heal()
