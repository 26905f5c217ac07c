"""Open connections to a guest's SSH port: by the container's address, or through an exec stream into the container.

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
from pytest_virtainers.support.runtime_modules import protocol

if TYPE_CHECKING:
    from pytest_virtainers.engine.base import Container, Engine
    from pytest_virtainers.engine.facts import Addresses

_LOOK_SECONDS = 1.0
_DIRECT_SECONDS = 1.0
_RELAY_EVERY = 4
_TRIES, _WAY_SECONDS = _RELAY_EVERY + 1, 5.0
_SOCAT = re.compile(r"(?s).* socat\[\d+\] [A-Z] ")  # the prefix of its messages
RELAY = ["relay", str(client.PORT)]
"""The command of the runtime image that connects its stdin and stdout to a port of the guest."""


class Endpoint:
    """The ways to one guest's SSH port; it remembers the one that works.

    Attributes:
        engine: the engine that runs the guest.
        direct: whether the address works rather than the relay; `None`: not known yet.
    """

    def __init__(self, engine: Engine, container: Container) -> None:
        self.engine = engine
        self._container = container
        self.direct: bool | None
        self._take(container.addresses())

    def _take(self, found: Addresses) -> None:
        self._looked, self._silent_tries = time.monotonic(), 0
        self._address = found.address
        is_member = bool(found.address) and host.is_member_of(IPv4Interface((found.address, found.prefix)))
        self.direct = None if is_member else False

    @property
    def address(self) -> str:
        """The guest's IPv4 address on its network; empty while it is disconnected."""
        if not self._address:
            self._look()
        return self._address

    def leads_to(self, address: str) -> bool:
        """Return whether the container still has an address; this asks the engine at most once a second.

        If it has a different address, `dial` looks for a new way.
        """
        if time.monotonic() - self._looked > _LOOK_SECONDS:
            self._look()
        return address == self._address

    def _look(self) -> None:
        with contextlib.suppress(EngineError):  # the next use of the connection reports it
            self._looked = time.monotonic()
            found = self._container.addresses(refresh=True)
            if found.address != self._address:
                self._take(found)

    def dial(self, timeout: float) -> Any:
        """Open a connection within `timeout` seconds, as a socket for paramiko; raise `OSError` or `EngineError`.

        On a network of this host, an open or refused port proves that the address can be reached. Without an answer
        (the guest is still booting, or the network refuses connections of its host), every fourth attempt goes
        through the relay. After the container was disconnected from its network, every attempt does.
        """
        self.leads_to(self._address)
        if self.direct is not False:
            try:
                sock = client.dial(self._address, min(timeout, _DIRECT_SECONDS))
            except ConnectionRefusedError:
                self.direct = True
                raise
            except OSError:
                self._silent_tries += 1
                if self.direct or self._silent_tries % _RELAY_EVERY:
                    raise
            else:
                self.direct = True
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
        self.direct = False
        return stream

    def find_way(self) -> None:
        """Connect once, so that `ssh_options` returns the way that works."""
        for _ in range(_TRIES):
            with contextlib.suppress(EngineError, OSError):
                sock = self.dial(_WAY_SECONDS)
                try:
                    if sock.recv(1):
                        return
                finally:
                    sock.close()

    def dial_serial(self) -> Any:
        """Open a connection to the serial session of a running clone; result and errors are those of `dial`."""
        self.leads_to(self._address)
        if self.direct is not False:
            try:
                sock = client.dial(self._address, _DIRECT_SECONDS, protocol.SSH_TCP_PORT)
            except OSError:
                self.direct = False  # a clone's supervisor listens before the clone runs
            else:
                self.direct = True
                return sock
        return self._container.stream(resumable.COMMAND)

    def ssh_options(self) -> dict[str, str]:
        """Return the OpenSSH options for the same way; a value is not quoted, and a command is a shell line."""
        if self.direct is not False:
            return {}
        words = [sys.executable, "-m", "pytest_virtainers.engine.relay", self.engine.url, self._container.id, *RELAY]
        return {"ProxyCommand": shlex.join(words)}
