"""Templates made from their plain template: the content and identity of their clones."""

import os
import shlex
import subprocess
import uuid
from collections.abc import Iterator

import pytest

from pytest_virtainers import VM, BootError
from pytest_virtainers.config.settings import resolve
from pytest_virtainers.config.spec import Spec, check, merge
from pytest_virtainers.launching.launcher import Launcher
from pytest_virtainers.launching.templates import Template
from pytest_virtainers.ssh.keys import KeyPair

UNIQUE = uuid.uuid4().hex  # so that each run makes them


def prepare(vm: VM, unique: str = UNIQUE) -> None:
    vm.run(f"cat /srv/ran >/srv/{unique}; usermod -aG games debian", sudo=True)


def spec(name: str, **arguments: object) -> Spec:
    shape = {"ram": "512M", "disk": "3G", "cpus": 2, "name": name}
    return merge(resolve([]).shape, check({**shape, **arguments}, "here"))


LAYER = {
    "files": {"/srv/a b/c": f"file {UNIQUE}"},
    "run_commands": ["echo $((6*7)) $(id -un) $PWD >/srv/ran; cat '/srv/a b/c'", ["touch", "/srv/a file"]],
    "prepare": prepare,
}


def made(launcher: Launcher, kind: str) -> int:
    return sum(record.kind == kind for record in launcher.durations)


def template_of(launcher: Launcher, wanted: Spec) -> Template:
    template = launcher.templates.find(wanted, launcher.guests.get(wanted.image))
    assert template is not None
    return template


@pytest.fixture(scope="module")
def further_key() -> str:
    return KeyPair.generate().public


@pytest.fixture(scope="module")
def layer(launcher: Launcher, further_key: str) -> Iterator[VM]:
    """Launch a clone of a template that was made from the existing plain template."""
    launcher.discard(launcher.launch(spec("plain")))
    boots, layers = made(launcher, "template"), made(launcher, "layer")
    vm = launcher.launch(spec("layer", authorized_keys=[further_key], **LAYER))
    assert (made(launcher, "template"), made(launcher, "layer")) == (boots, layers + 1)
    yield vm
    launcher.discard(vm)


def test_a_layer_has_all_additions_without_a_boot(layer: VM) -> None:
    assert "Linux version" not in layer.console.text
    said = layer.run("cat '/srv/a b/c'; echo; cat /srv/ran; stat -c '%a %U' '/srv/a b/c'; ls '/srv/a file'; hostname")
    assert said.stdout == f"file {UNIQUE}\n42 root /\n644 root\n/srv/a file\nlayer\n"
    assert layer.read_text(f"/srv/{UNIQUE}") == "42 root /\n", "prepare comes last"
    assert f"file {UNIQUE}" in layer.read_text("/var/log/cloud-init-output.log")
    assert f"file {UNIQUE}" in layer.run("journalctl -b -o cat -t cloud-init", sudo=True).stdout
    assert layer.run("cloud-init status", check=False).stdout == "status: done\n"
    assert (
        layer.run("systemctl --failed --quiet; ls /etc/cloud/cloud.cfg.d", sudo=True).stdout.count("virtainers") == 0
    )


def test_a_layer_is_another_machine_than_its_plain_template(launcher: Launcher, layer: VM, further_key: str) -> None:
    plain = template_of(launcher, spec("plain"))
    assert plain.keys.login != layer.machine.keys.login
    assert plain.keys.host != layer.machine.keys.host
    assert subprocess.run([*shlex.split(layer.access.ssh_command), "true"], timeout=60, check=False).returncode == 0
    admitted = layer.read_text("/home/debian/.ssh/authorized_keys").splitlines()
    assert [layer.machine.keys.login.public, further_key] == [" ".join(each.split()[:2]) for each in admitted]
    assert layer.run("cut -d' ' -f2 /etc/ssh/ssh_host_*.pub").stdout.split() == [
        layer.machine.keys.host.public.split()[1]
    ]
    other = launcher.launch(spec("plain"))
    ids = {vm.run("cat /etc/machine-id").stdout for vm in (other, layer)}
    launcher.discard(other)
    assert len(ids) == 2
    assert "New session" in layer.run("journalctl -b -u systemd-logind", sudo=True).stdout, "the journal continues"


def test_the_session_of_a_layer_is_a_login_after_prepare(layer: VM) -> None:
    assert layer.run("echo $SSH_CONNECTION").stdout.split()[0] == "UNKNOWN", "clones resume it"
    assert "games" in layer.run("id -nG").stdout.split()
    assert layer.run("pgrep -fc virtainer-clone.py", check=False).stdout == "1\n"
    assert layer.run("pgrep -fc '[s]shd-session: debian .priv'", check=False).stdout in {"1\n", "2\n"}


def test_a_new_login_is_made_only_if_it_may_differ(launcher: Launcher, layer: VM) -> None:
    plain = launcher.launch(spec("plain"))
    kept = launcher.launch(spec("kept", run_commands=[f"touch /srv/{UNIQUE}"]))
    former, same, other = (vm.run("echo $PPID").stdout for vm in (plain, kept, layer))  # the sshd of the session
    assert former == same != other
    assert kept.run(f"sudo cat /etc/shadow >/dev/null; ls /srv/{UNIQUE}").ok
    for vm in (plain, kept):
        launcher.discard(vm)


def test_a_layer_does_not_need_its_plain_template(launcher: Launcher, layer: VM) -> None:
    plain = template_of(launcher, spec("plain"))
    layered = launcher.templates.made_from(plain.place)[0]
    with launcher.store.open() as store:
        said = store.shell('qemu-img info -U --backing-chain "$1"/local_image.qcow2', f"/store/{layered.place}")
    assert plain.key not in said
    assert said.count("image: ") == 2


@pytest.mark.thorough
def test_a_clone_of_a_layer_reboots_and_keeps_its_keys(layer: VM) -> None:
    layer.reboot()
    assert layer.run("hostname; cat /srv/ran").stdout == "layer\n42 root /\n"


def test_a_command_that_fails_in_a_layer_fails_the_launch_as_in_a_boot(launcher: Launcher) -> None:
    said = f"now {os.urandom(8).hex()}"
    with pytest.raises(BootError) as caught:
        launcher.launch(spec("failing", run_commands=[f"echo {said}", "exit 3"]))
    assert str(caught.value).startswith(
        "cloud-init in vm reports errors; look at user_data, packages and run_commands:\n"
        "  modules-final: ('scripts_user', RuntimeError('Runparts: 1 failures (runcmd) in 1 attempted commands'))\n"
        "The last lines of its console:\n"
    )
    assert said in str(caught.value)


@pytest.mark.thorough
def test_cloud_init_installs_the_packages_of_a_layer(launcher: Launcher) -> None:
    vm = launcher.launch(spec("packages", packages=["hello"], run_commands=[f"hello >/srv/{UNIQUE}"]))
    assert "Linux version" not in vm.console.text
    assert vm.read_text(f"/srv/{UNIQUE}") == "Hello, world!\n"
    assert "Setting up hello" in vm.read_text("/var/log/cloud-init-output.log")
    assert "virtainers" not in vm.run("ls /etc/cloud/cloud.cfg.d").stdout
    launcher.discard(vm)
    with pytest.raises(BootError, match="no-such-package-at-all") as caught:
        launcher.launch(spec("failing", packages=["no-such-package-at-all"]))
    assert str(caught.value).startswith("cloud-init in vm reports errors; look at user_data, packages and run_comm")
