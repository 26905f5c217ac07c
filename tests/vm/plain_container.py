"""A virtainer run by the engine's own command line."""

from __future__ import annotations

import contextlib
import itertools
import json
import subprocess
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_virtainers.engine import ownership

if TYPE_CHECKING:
    from collections.abc import Iterator

CAPABILITIES = ("NET_ADMIN", "NET_BIND_SERVICE", "NET_RAW", "SETUID", "SETGID")
TUN = ["--device", "/dev/net/tun"]
FORWARD = ["--sysctl", "net.ipv4.ip_forward=1"]
# All that a virtainer needs, and no more.
LEAST = [
    *("--cap-drop", "ALL", "--security-opt", "no-new-privileges", *TUN, *FORWARD),
    *itertools.chain.from_iterable(("--cap-add", name) for name in CAPABILITIES),
]
# The next sweep removes what a killed run leaves, by these labels.
OWNED = [f"--label={name}={value}" for name, value in ownership.labels("vm", "contract").items()]
LIMITS = ["--ulimit", "nofile=1024", "--ulimit", "nproc=4096"]  # Podman's defaults may exceed the host's limits
BOOT = 400  # seconds until SSH answers, emulated on a busy machine
FIRMWARE = 180  # seconds until a boot sector runs


@dataclass
class Container:
    """One virtainer, and the engine's reports about it."""

    cli: list[str]
    name: str

    def engine(self, *words: str, stdin: str = "", check: bool = True, timeout: float = 180) -> str:
        done = subprocess.run(
            [*self.cli, *words], input=stdin, capture_output=True, text=True, check=False, timeout=timeout
        )
        assert done.returncode == 0 or not check, done.stderr
        return done.stdout

    def exec(self, *words: str, stdin: str = "", check: bool = True) -> str:
        return self.engine("exec", "-i", self.name, *words, stdin=stdin, check=check)

    def qmp(self, command: str) -> Any:
        return json.loads(self.exec("qmp", json.dumps({"execute": command})))["return"]

    def streams(self) -> tuple[str, str]:
        """Return stdout and stderr so far."""
        done = subprocess.run([*self.cli, "logs", self.name], capture_output=True, check=True)
        return done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")

    @property
    def console(self) -> str:
        return self.streams()[0]

    @property
    def said(self) -> str:
        return self.streams()[1]

    def wait_for(self, text: str, seconds: float = FIRMWARE, *, count: int = 1) -> None:
        """Wait until a text was seen on the console or in the supervisor's lines."""
        deadline = time.monotonic() + seconds
        while "".join(self.streams()).count(text) < count:
            assert self.running(), f"ended before {text!r}: {self.said}"
            assert time.monotonic() < deadline, f"no {text!r} in {seconds} s: {self.said}{self.console[-2000:]}"
            time.sleep(0.3)

    def running(self) -> bool:
        return self.engine("inspect", "-f", "{{.State.Running}}", self.name).strip() == "true"

    def end(self, seconds: float = 180) -> tuple[int, str]:
        """Wait for the end; return exit code and last line on stderr."""
        code = int(self.engine("wait", self.name, timeout=seconds))
        return code, self.said.splitlines()[-1]

    def address(self) -> str:
        template = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}"
        return self.engine("inspect", "-f", template, self.name).split()[0]

    def signal(self, name: str) -> None:
        self.engine("kill", "-s", name, self.name)


@contextlib.contextmanager
def new_network(engine_cli: list[str], octets: str, *options: str) -> Iterator[str]:
    name = f"contract-{uuid.uuid4().hex[:8]}"
    # A chosen subnet: one of Docker's contains the guests' inner network.
    number = uuid.uuid4().int % 128 * 2 + (engine_cli[0] == "podman")  # tests of both engines may run at one time
    subnet = f"{octets}.{number}.0/24"
    subprocess.run(
        [*engine_cli, "network", "create", *options, "--subnet", subnet, name], capture_output=True, check=True
    )
    yield name
    subprocess.run([*engine_cli, "network", "rm", name], capture_output=True, check=False)
