"""Where a guest's SSH answers: the container's address, or else an exec stream into the container.

The stream works where this host is not on the container's network: remote engines, rootless Podman, Docker Desktop.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import sys
import time
from ipaddress import IPv4Interface
from typing import TYPE_CHECKING, Any

from pytest_virtainers.engine import host
from pytest_virtainers.errors import EngineError
from pytest_virtainers.ssh import client, resumable

if TYPE_CHECKING:
    from pytest_virtainers.engine.base import Container, Engine
    from pytest_virtainers.engine.facts import Addresses

_LOOK_SECONDS = 1.0
_DIRECT_SECONDS = 1.0
_RELAY_EVERY = 4
_SOCAT = re.compile(r"(?s).* socat\[\d+\] [A-Z] ")  # what stands before its words
RELAY = ["relay", str(client.PORT)]
"""The command in the runtime image that connects its stdin and stdout to a port of the guest."""


class Endpoint:
    """The ways to one guest's SSH port; the one that works is kept."""

    def __init__(self, engine: Engine, container: Container) -> None:
        self.engine = engine
        self._container = container
        self._direct: bool | None
        self._take(container.addresses())

    def _take(self, found: Addresses) -> None:
        self._looked, self._silent_tries = time.monotonic(), 0
        self._address = found.address
        beside = bool(found.address) and host.is_beside(IPv4Interface((found.address, found.prefix)))
        self._direct = None if beside else False

    @property
    def address(self) -> str:
        """The IPv4 address at which others of its network reach the guest; empty while it is disconnected."""
        if not self._address:
            self._look()
        return self._address

    def leads_to(self, address: str) -> bool:
        """Return whether the container is still at an address; the engine is asked at most once a second.

        Where it is not, `dial` takes another way from now on.
        """
        if time.monotonic() - self._looked > _LOOK_SECONDS:
            self._look()
        return address == self._address

    def _look(self) -> None:
        with contextlib.suppress(EngineError):  # then nothing is known; the next use of the connection shows more
            self._looked = time.monotonic()
            found = self._container.addresses(refresh=True)
            if found.address != self._address:
                self._take(found)

    def dial(self, timeout: float) -> Any:
        """Open a connection, as a socket for paramiko; `timeout` in seconds; raises `OSError` or `EngineError`.

        On a network of this host, an open or refused port proves that the address can be reached. As long as there
        is no answer (the guest may not be up yet, or the network keeps its host out), each fourth try goes through
        the relay. So does all once the container is disconnected from its network.
        """
        self.leads_to(self._address)
        if self._direct is not False:
            try:
                sock = client.dial(self._address, min(timeout, _DIRECT_SECONDS))
            except ConnectionRefusedError:
                self._direct = True
                raise
            except OSError:
                self._silent_tries += 1
                if self._direct or self._silent_tries % _RELAY_EVERY:
                    raise
            else:
                self._direct = True
                return sock
        with contextlib.ExitStack() as undo:
            stream = self._container.stream(RELAY)
            undo.callback(stream.close)
            stream.settimeout(timeout)
            try:
                stream.wait_for_output()  # the guest's, which speaks first
            except (ConnectionError, TimeoutError) as error:
                raise ConnectionError(f"through its container: {_SOCAT.sub('', str(error))}") from error
            undo.pop_all()
        self._direct = False
        return stream

    def dial_line(self) -> Any:
        """Open a connection to the line of a clone that runs, as a socket for paramiko; raises as `dial` does."""
        self.leads_to(self._address)
        if self._direct is not False:
            try:
                sock = client.dial(self._address, _DIRECT_SECONDS, resumable.PORT)
            except OSError:
                self._direct = False  # a clone's supervisor listens before it runs
            else:
                self._direct = True
                return sock
        return self._container.stream(resumable.COMMAND)

    def ssh_options(self) -> dict[str, str]:
        """Return what OpenSSH needs to take the same way, not quoted for ssh_config; a command is a shell line."""
        if self._direct is not False:
            return {}
        words = [sys.executable, "-m", "pytest_virtainers.engine.relay", self.engine.url, self._container.id, *RELAY]
        return {"ProxyCommand": shlex.join(words)}
