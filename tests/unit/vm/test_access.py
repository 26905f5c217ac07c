"""Access to a VM for other tools."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from pytest_virtainers.config.settings import resolve
from pytest_virtainers.config.spec import merge
from pytest_virtainers.engine.output import Output
from pytest_virtainers.errors import SpecError
from pytest_virtainers.ssh.keys import KeyPair, Keys
from pytest_virtainers.support.progress import SILENT
from pytest_virtainers.vm.access import ssh_config_value
from pytest_virtainers.vm.machine import Machine
from pytest_virtainers.vm.vm import VM
from tests.unit.memory_engine import MemoryEngine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ENGINE = MemoryEngine(kind="podman", url="unix:///tmp/x y.sock")


@pytest.fixture
def vm() -> Iterator[VM]:
    endpoint: Any = SimpleNamespace(address="10.0.0.2", ssh_options=dict, engine=ENGINE)
    container: Any = SimpleNamespace(id="0123", close=lambda: None, stdout=Output(), stderr=Output())
    keys = Keys(KeyPair("PRIVATE", ""), KeyPair("", "ssh-ed25519 AAAA"))
    network: Any = None
    spec = merge(resolve([]).shape)
    made = Machine(
        spec, user="debian", keys=keys, container=container, endpoint=endpoint, network=network, progress=SILENT
    )
    yield VM(made)
    made.close()


def test_ansible_reuses_no_connection_to_another_vm_of_this_name(vm: VM) -> None:
    words = shlex.split(vm.access.ansible_vars()["ansible_ssh_common_args"])
    assert words == ["-F", str(vm.access.ssh_config()), "-o", "ControlPath=none"]


def test_console_command_names_the_engine_of_the_vm(vm: VM) -> None:
    assert vm.access.console_command == "podman --url 'unix:///tmp/x y.sock' exec -it 0123 console"


NEEDS_SSH = pytest.mark.skipif(shutil.which("ssh") is None, reason="without OpenSSH")


@pytest.fixture(
    params=["plain", "two words", 'quo"te', "per%cent", "back\\slash", "ha#sh", "it's", "a=b", "percent %h"]
)
def odd_folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder for temporary files; its name has characters that configuration files interpret."""
    folder = tmp_path / str(request.param)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def understood(*words: str) -> dict[str, str]:
    """Return the options as OpenSSH reads them, by their names."""
    done = subprocess.run([*words[:1], "-G", *words[1:]], capture_output=True, text=True, check=True)
    return dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)


@NEEDS_SSH
def test_openssh_reads_paths_with_any_name(vm: VM, odd_folder: Path) -> None:
    config = str(vm.access.ssh_config())
    for words in (["ssh", "-F", config, "vm"], shlex.split(vm.access.ssh_command)):
        found = understood(*words)
        # It shows the paths before it replaces its tokens.
        for option, name in (("identityfile", "key"), ("userknownhostsfile", "known_hosts")):
            path = found[option].replace("%%", "%")
            assert path.startswith(f"{odd_folder}/")
            assert path.endswith(f"/{name}")
        assert (found["user"], found["hostname"], found["hostkeyalias"]) == ("debian", "10.0.0.2", "vm")


@NEEDS_SSH
def test_words_after_ssh_command_are_a_command(vm: VM, tmp_path: Path) -> None:
    line = shlex.split(vm.access.ssh_command)
    assert line[-2:] == ["--", "debian@10.0.0.2"]
    for word in ("true", f"-oProxyCommand=touch {tmp_path}/ran"):
        assert understood(*line, word) == understood(*line)


@NEEDS_SSH
def test_ssh_command_destination_is_never_an_option(vm: VM, tmp_path: Path) -> None:
    vm.machine.user = f"-oProxyCommand=touch {tmp_path}/ran;#"
    for options in ([], ["-v"]):
        line = shlex.split(vm.access.ssh_command)
        subprocess.run([*line, *options, "true"], capture_output=True, check=False, timeout=30)
    assert not (tmp_path / "ran").exists()


@NEEDS_SSH
def test_proxy_command_is_one_shell_line(vm: VM, tmp_path: Path) -> None:
    words = ["printf", "%s", "%h %% $HOME 'b' \"c\" \\d"]
    endpoint: Any = vm.machine.endpoint
    endpoint.ssh_options = lambda: {
        "ProxyCommand": f"{shlex.join(words)} | tee {shlex.quote(str(tmp_path / 'said'))}"
    }
    for line in (["ssh", "-F", str(vm.access.ssh_config()), "vm"], shlex.split(vm.access.ssh_command)):
        (tmp_path / "said").unlink(missing_ok=True)
        subprocess.run([*line, "true"], capture_output=True, check=False, timeout=30)
        assert (tmp_path / "said").read_text() == words[2]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("User", "a\nProxyCommand id"),
        ("ProxyCommand", "a\nb"),
        ("HostName", "a\rb"),
        ("IdentityFile", "/${HOME}/key"),
    ],
)
def test_ssh_config_value_refuses_what_the_file_cannot_hold(name: str, value: str) -> None:
    with pytest.raises(SpecError, match=rf"^ssh_config cannot hold {name}='"):
        ssh_config_value(name, value)


def test_ansible_and_testinfra_read_a_configuration_with_any_name(
    vm: VM, odd_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = shlex.split(vm.access.ansible_vars()["ansible_ssh_common_args"])
    assert words == ["-F", str(vm.access.ssh_config()), "-o", "ControlPath=none"]
    assert yaml.safe_load(vm.access.ansible_inventory().read_text())["all"]["hosts"]["vm"] == vm.access.ansible_vars()
    asked: list[str] = []
    testinfra = pytest.importorskip("testinfra")
    monkeypatch.setattr(testinfra, "get_host", lambda url, sudo: asked.append(url))
    assert vm.access.testinfra is None
    url = urlsplit(asked[0])
    assert (url.scheme, url.netloc) == ("ssh", "vm")
    assert parse_qs(url.query) == {"ssh_config": [str(vm.access.ssh_config())]}
