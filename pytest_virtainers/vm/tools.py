"""Ways in for other tools: OpenSSH and its kin, testinfra, Ansible."""

from __future__ import annotations

import contextlib
import re
import shlex
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pytest_virtainers.engine import scratch
from pytest_virtainers.errors import EngineError, SpecError
from pytest_virtainers.vm.core import Core

_COMMAND = "ProxyCommand"
_EXPANDED = {"HostName", "IdentityFile", "UserKnownHostsFile", _COMMAND}
"""Options in whose values OpenSSH replaces %-tokens; in the files' names, also variables of the environment."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_PLAIN = re.compile(r"[\w./:%+,-]+", re.ASCII)
_TRIES, _WAY_SECONDS = 5, 5.0  # the endpoint tries the relay each fourth time


class Tools(Core):
    """The part of the handle that other tools use. Key and known hosts are private files that go with the machine."""

    @property
    def ssh_command(self) -> str:
        """A shell line that opens a session on this machine."""
        words = ["ssh", "-F", "none"]
        for name, value in self._ssh_options().items():
            words += ["-o", f"{name}={ssh_config_value(name, value)}"]
        return shlex.join([*words, "--", f"{self.user}@{self.ip or self.name}"])

    def find_way(self) -> None:
        """Learn by which way its SSH is reached, for `ssh_command`, where nothing has been connected as yet."""
        for _ in range(_TRIES):
            with contextlib.suppress(EngineError, OSError):
                sock = self.endpoint.dial(_WAY_SECONDS)
                try:
                    if sock.recv(1):
                        return
                finally:
                    sock.close()

    @property
    def console_command(self) -> str:
        """A shell line that opens the serial console; Ctrl-] leaves it."""
        return shlex.join([*self.endpoint.engine.command_line(), "exec", "-it", self.container.id, "console"])

    def ssh_config(self) -> Path:
        """Give the path of an `ssh_config` file that knows this machine by its name: `ssh -F PATH NAME`.

        scp, sftp, rsync (`-e "ssh -F PATH"`) and VS Code's Remote-SSH read the same format.
        """
        options = {"HostName": self.ip or self.name, "User": self.user, **self._ssh_options()}
        rows = [
            f"Host {self.name}",
            *(f"  {name} {ssh_config_value(name, value)}" for name, value in options.items()),
        ]
        path = self._folder() / "config"
        path.write_text("\n".join(rows) + "\n")
        return path

    @property
    def testinfra(self) -> Any:
        """A testinfra host: `vm.testinfra.service("nginx").is_running` (needs pytest-testinfra)."""
        import testinfra

        config = quote(str(self.ssh_config()), safe="")
        return testinfra.get_host(f"ssh://{self.name}?ssh_config={config}", sudo=self.user != "root")

    def ansible_vars(self) -> dict[str, str]:
        """Give what Ansible has to know of this machine, by the names of its inventory variables."""
        return {
            "ansible_host": self.name,
            "ansible_user": self.user,
            # By default Ansible leaves a connection open for the next play, by host name, port and user: those of any
            # machine of this name.
            "ansible_ssh_common_args": f"-F {shlex.quote(str(self.ssh_config()))} -o ControlPath=none",
            "ansible_python_interpreter": "auto_silent",
        }

    def ansible_inventory(self) -> Path:
        """Write an inventory with this machine in it; give its path: `ansible-playbook -i PATH play.yml`."""
        import yaml

        path = self._folder() / "inventory.yml"
        path.write_text(yaml.safe_dump({"all": {"hosts": {self.name: self.ansible_vars()}}}))
        return path

    def _ssh_options(self) -> dict[str, str]:
        folder = self._folder()
        return {
            "IdentityFile": str(folder / "key"),
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": str(folder / "known_hosts"),
            "GlobalKnownHostsFile": "none",
            "StrictHostKeyChecking": "yes",
            "HostKeyAlias": self.name,
            "LogLevel": "ERROR",
            **self.endpoint.ssh_options(),
        }

    def _folder(self) -> Path:
        """Give the folder with the key, and the host key as it is now."""
        if self._files is None:
            self._files = scratch.Folder("ssh")
            key = Path(self._files.name, "key")
            key.touch(mode=0o600)
            key.write_text(self.keys.login.private)
        folder = Path(self._files.name)
        (folder / "known_hosts").write_text(f"{self.name} {self.keys.host.public}\n")
        return folder


def ssh_config_value(name: str, value: str) -> str:
    """Write the value of an option as ssh_config(5) reads it, and nothing else into it.

    Raises:
        SpecError: it cannot be written there.
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
