"""Access for other tools: OpenSSH, scp, rsync, testinfra, Ansible."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from pytest_virtainers.engine import scratch
from pytest_virtainers.errors import SpecError

if TYPE_CHECKING:
    from pytest_virtainers.vm.machine import Machine

_COMMAND = "ProxyCommand"
_EXPANDED = {"HostName", "IdentityFile", "UserKnownHostsFile", _COMMAND}
"""Options in whose values OpenSSH replaces %-tokens; in file names, also environment variables."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_PLAIN = re.compile(r"[\w./:%+,-]+", re.ASCII)


class Access:
    """Access to a VM for other tools: `vm.access`.

    The key and the known hosts are private files, which are removed with the VM.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._files: scratch.Folder | None = None

    @property
    def ssh_command(self) -> str:
        """A shell line that opens a session on the VM."""
        machine = self._machine
        words = ["ssh", "-F", "none"]
        for name, value in self._ssh_options().items():
            words += ["-o", f"{name}={ssh_config_value(name, value)}"]
        return shlex.join([*words, "--", f"{machine.user}@{machine.ip or machine.name}"])

    @property
    def console_command(self) -> str:
        """A shell line that opens the serial console; Ctrl-] leaves it."""
        machine = self._machine
        return shlex.join([*machine.endpoint.engine.command_line(), "exec", "-it", machine.container.id, "console"])

    def ssh_config(self) -> Path:
        """Write an `ssh_config` file for the VM; return its path: `ssh -F PATH NAME`.

        scp, sftp, rsync (`-e "ssh -F PATH"`) and VS Code's Remote-SSH read the same format.
        """
        machine = self._machine
        options = {
            "HostName": machine.ip or machine.name,
            "User": machine.user,
            **self._ssh_options(),
        }
        rows = [
            f"Host {machine.name}",
            *(f"  {name} {ssh_config_value(name, value)}" for name, value in options.items()),
        ]
        path = self._folder() / "config"
        path.write_text("\n".join(rows) + "\n")
        return path

    @property
    def testinfra(self) -> Any:
        """A testinfra host: `vm.access.testinfra.service("nginx").is_running` (requires pytest-testinfra)."""
        machine = self._machine
        import testinfra

        config = quote(str(self.ssh_config()), safe="")
        return testinfra.get_host(f"ssh://{machine.name}?ssh_config={config}", sudo=machine.user != "root")

    def ansible_vars(self) -> dict[str, str]:
        """Return the Ansible inventory variables of the VM."""
        machine = self._machine
        return {
            "ansible_host": machine.name,
            "ansible_user": machine.user,
            # By default Ansible keeps a connection open for the next play, by host name, port and user. That could be
            # one to another VM with this name.
            "ansible_ssh_common_args": f"-F {shlex.quote(str(self.ssh_config()))} -o ControlPath=none",
            "ansible_python_interpreter": "auto_silent",
        }

    def ansible_inventory(self) -> Path:
        """Write an Ansible inventory with the VM; return its path: `ansible-playbook -i PATH play.yml`."""
        import yaml

        path = self._folder() / "inventory.yml"
        path.write_text(yaml.safe_dump({"all": {"hosts": {self._machine.name: self.ansible_vars()}}}))
        return path

    def _ssh_options(self) -> dict[str, str]:
        machine = self._machine
        folder = self._folder()
        return {
            "IdentityFile": str(folder / "key"),
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": str(folder / "known_hosts"),
            "GlobalKnownHostsFile": "none",
            "StrictHostKeyChecking": "yes",
            "HostKeyAlias": machine.name,
            "LogLevel": "ERROR",
            **machine.endpoint.ssh_options(),
        }

    def _folder(self) -> Path:
        """Return the folder with the key and the current host key."""
        if self._files is None:
            self._files = scratch.Folder("ssh")
            self._machine.on_close.callback(self._files.cleanup)
            key = Path(self._files.name, "key")
            key.touch(mode=0o600)
            key.write_text(self._machine.keys.login.private)
        folder = Path(self._files.name)
        (folder / "known_hosts").write_text(f"{self._machine.name} {self._machine.keys.host.public}\n")
        return folder


def ssh_config_value(name: str, value: str) -> str:
    """Quote the value of an option for ssh_config(5).

    Raises:
        SpecError: the file cannot hold it.
    """
    if _CONTROL.search(value):
        raise SpecError(f"ssh_config cannot hold {name}={value!r}: it has a line break or another control character")
    if name in _EXPANDED:
        value = value.replace("%", "%%")
        if "${" in value and name != _COMMAND:
            raise SpecError(f"ssh_config cannot hold {name}={value!r}: OpenSSH replaces ${{…}} there")
    if name == _COMMAND or _PLAIN.fullmatch(value):  # a command is the rest of its line
        return value
    return '"' + value.replace("\\", r"\\").replace('"', r"\"") + '"'
