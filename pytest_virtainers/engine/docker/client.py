"""The SDK's client with some of its habits changed."""

from __future__ import annotations

import socket
from typing import Any

import docker

from pytest_virtainers.support.forks import Owner, close_copy, disown_in_child, silence

FORK_REMEDY = "Use a thread, or connect in the child."
"""What a forked child can do instead of using a connection of its parent."""


class Client(docker.APIClient):
    """The SDK's client. It refuses to work in a forked child, limits each read, and opens logs."""

    def __init__(self, base_url: str, **options: Any) -> None:
        self._owner = Owner(f"the connection to {base_url}", FORK_REMEDY)
        super().__init__(base_url=base_url, **options)
        disown_in_child(self)

    def disown(self) -> None:
        """Close a forked child's copies of pooled connections."""
        for adapter in self.adapters.values():
            inner: Any = adapter
            if (over_ssh := getattr(inner, "ssh_client", None)) and over_ssh.get_transport():
                silence(over_ssh.get_transport())
            pools = inner.pools if hasattr(inner, "pools") else inner.poolmanager.pools
            for pool in list(pools._container.values()):
                kept = pool.pool
                for connection in () if kept is None else kept.queue:
                    if isinstance(getattr(connection, "sock", None), socket.socket):
                        close_copy(connection.sock)
                if kept is not None:
                    kept.__init__(kept.maxsize)  # empty, with a lock that no other thread holds

    def send(self, request: Any, **options: Any) -> Any:
        """Send a request, as all calls do; raise `VirtainerError` in a forked child."""
        self._owner.check()
        return super().send(request, **options)

    def _disable_socket_timeout(self, _socket: Any) -> None:
        """Do nothing: the SDK would remove the time limit on each read, and wait forever for an engine that hangs."""

    def open_log(self, container: str, *, follow: bool, since: float = 0.0) -> Any:
        """Open the log of a container, in the frames of the engine, with no limit on silence.

        The SDK's `logs` gives up when the container is silent, and does not say which stream a piece belongs to.

        Args:
            container: name or id.
            follow: whether to continue until the container ends.
            since: seconds since 1970.
        """
        asked = {"stdout": 1, "stderr": 1, "follow": int(follow), "since": since}
        api: Any = self  # these methods of the SDK have no types
        url = api._url("/containers/{0}/logs", container)
        response = api._get(url, params=asked, stream=True, timeout=(self.timeout, None))
        api._raise_for_status(response)
        return response

    def merge_environment_settings(self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any) -> Any:
        """Use the engine's certificate authority even where `REQUESTS_CA_BUNDLE` is set for other servers.

        `requests` takes the environment's where a call names none.
        """
        return super().merge_environment_settings(
            url, proxies, stream, self.verify if verify is None else verify, cert
        )
