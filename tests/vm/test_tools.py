"""Other tools (the real ones) reach a machine with the facts in `vm.access`."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_virtainers import VM


@pytest.fixture(params=["direct", "relay"])
def vm_by(request: pytest.FixtureRequest, session_vm: VM) -> Iterator[VM]:
    endpoint = session_vm.machine.endpoint
    direct = endpoint.direct
    if request.param == "direct" and endpoint.engine.kind == "podman" and os.geteuid() != 0:
        pytest.skip("the containers of a rootless Podman cannot be reached directly")
    assert direct or request.param == "relay"
    endpoint.direct = request.param == "direct"
    yield session_vm
    endpoint.direct = direct


def tool(*words: str, **environment: str) -> str:
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, timeout=900, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def put_rsync(vm: VM, folder: Path) -> str:
    """Copy this host's rsync with its libraries into the guest, which has none; return its command there."""
    program = shutil.which("rsync")
    assert program
    folder.mkdir()
    libraries = [word for word in tool("ldd", program).split() if word.startswith("/")]
    for each in (program, *libraries):
        shutil.copy(each, folder)
    (loader,) = (Path(each).name for each in libraries if Path(each).name.startswith("ld-"))
    there = vm.put(folder, f"/opt/{folder.parent.name}")
    return f"{there}/{loader} --library-path {there} {there}/rsync"


def test_openssh_scp_and_rsync(vm_by: VM, tmp_path: Path) -> None:
    config = str(vm_by.access.ssh_config())
    assert tool("ssh", "-F", config, "vm", "echo $((6*7))") == "42\n"
    (tmp_path / "file").write_text("content")
    tool("scp", "-F", config, str(tmp_path / "file"), "vm:/tmp/by-scp")
    rsync = put_rsync(vm_by, tmp_path / "rsync")
    how = ["-e", f"ssh -F {shlex.quote(config)}", "--rsync-path", rsync]
    tool("rsync", *how, str(tmp_path / "file"), "vm:/tmp/by-rsync")
    assert vm_by.run("cat /tmp/by-scp /tmp/by-rsync").stdout == "contentcontent"


def test_testinfra(vm_by: VM) -> None:
    host = vm_by.access.testinfra
    assert host.service("ssh").is_running
    assert host.file("/etc/shadow").contains("root")
    assert host.package("openssh-server").is_installed
    assert host.check_output("id -un") == "root"


PLAY = """
- hosts: all
  become: true
  gather_facts: false
  tasks:
    - copy: {content: "by ansible\\n", dest: /etc/by-ansible, mode: "0600"}
"""


def play(vm: VM, folder: Path) -> str:
    (folder / "play.yml").write_text(PLAY)
    return tool(
        *(str(Path(sys.executable).parent / "ansible-playbook"), "-i", str(vm.access.ansible_inventory())),
        str(folder / "play.yml"),
        ANSIBLE_LOCAL_TEMP=str(folder),
        LC_ALL="C.UTF-8",
    )


def test_ansible(vm_by: VM, tmp_path: Path) -> None:
    assert vm_by.access.ansible_vars()["ansible_user"] == "debian"
    assert "failed=0" in play(vm_by, tmp_path)
    assert vm_by.read_text("/etc/by-ansible") == "by ansible\n"


@pytest.mark.thorough
def test_ansible_distinguishes_machines_with_the_same_name(
    session_vm: VM, vm_factory: Callable[[str], VM], tmp_path: Path
) -> None:
    for vm in (session_vm, vm_factory(session_vm.name)):
        vm.run("rm -f /etc/by-ansible", sudo=True)
        assert "changed=1" in play(vm, tmp_path)
        assert vm.read_text("/etc/by-ansible") == "by ansible\n"
