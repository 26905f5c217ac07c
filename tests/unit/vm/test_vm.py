"""The public interface of a VM: its names and its documentation."""

import pydoc

import pytest

from pytest_virtainers import VM, Result
from pytest_virtainers.vm.access import Access
from pytest_virtainers.vm.disks import Disks
from pytest_virtainers.vm.faults import Faults
from pytest_virtainers.vm.nics import Nics
from pytest_virtainers.vm.process import Process
from pytest_virtainers.vm.screen import Screen
from tests.unit.vm.fake_container import RUNS, Container, machine

MAPPING = {"get", "items", "keys", "values"}
PUBLIC: dict[type, set[str]] = {
    VM: {
        *("name", "spec", "user", "ip", "ip6", "network", "networks", "console", "log", "scaled"),
        *("disks", "nics", "screen", "faults", "access", "qmp"),
        *("run", "popen", "put", "get", "glob", "read_text", "write_text", "forward", "reverse"),
        *("wait_for", "wait_until_succeeds", "wait_until_fails", "wait_for_unit", "wait_for_port"),
        *("wait_for_closed_port", "wait_for_file", "wait_for_console", "wait_for_cloud_init"),
        *("reboot", "reset", "shutdown", "crash", "start", "pause", "resume"),
        *("snapshot", "snapshots", "restore", "delete_snapshot"),
    },
    Disks: {"add", "remove"},
    Nics: {"add", "remove", "link_down", "link_up", *MAPPING},
    Screen: {"screenshot", "send_keys", "type", "click", "vnc", "novnc"},
    Faults: {"fill_disk", "stop_clock_sync", "set_time", "block_network", "slow_disk"},
    Access: {
        *("ssh_command", "ssh_config", "console_command"),
        *("testinfra", "ansible_vars", "ansible_inventory"),
    },
    Result: {"ok", "stdout", "stderr", "streams"},
}


def public(thing: object) -> set[str]:
    return {name for name in dir(thing) if not name.startswith("_")}


@pytest.mark.parametrize("kind", PUBLIC, ids=lambda kind: kind.__name__)
def test_public_names_are_these(kind: type) -> None:
    assert public(kind) == PUBLIC[kind]


def test_a_vm_has_no_other_public_attribute_than_its_machine() -> None:
    vm = machine(Container(RUNS))
    assert public(vm) == PUBLIC[VM] | {"machine"}
    for group in (vm.disks, vm.nics, vm.screen, vm.faults, vm.access):
        assert public(group) == PUBLIC[type(group)]


@pytest.mark.parametrize("kind", [*PUBLIC, Process], ids=lambda kind: kind.__name__)
def test_each_public_name_is_documented(kind: type) -> None:
    assert kind.__doc__
    for name in public(kind) - MAPPING:
        first, *_ = (getattr(kind, name).__doc__ or "").splitlines() or [""]
        assert first.endswith((".", "`", ")")), f"{kind.__name__}.{name}"


def test_help_is_a_manual_page_of_one_class() -> None:
    shown = pydoc.plain(pydoc.render_doc(VM))
    assert "class VM(builtins.object)" in shown
    assert "Methods inherited from" not in shown
    for internal in ("wait_until_cloned", "renew_identity", "run_as_root", "on_close", " |  _"):
        assert internal not in shown.replace(" |  __", ""), internal
    for name in PUBLIC[VM]:
        assert f" |  {name}" in shown


def test_repr_has_name_image_and_address() -> None:
    assert repr(machine(Container(RUNS))) == "<VM vm (debian-13) at 10.0.0.2>"
