"""One engine that answers: what it is, and its failures in words."""

from __future__ import annotations

import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import docker
import docker.errors
import requests.exceptions
import urllib3.exceptions
from docker.types import LogConfig

from pytest_virtainers.engine.docker import cgroup
from pytest_virtainers.errors import EngineError
from pytest_virtainers.support.forks import Owner, close_copy, disown_in_child, silence

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from docker.tls import TLSConfig

    from pytest_virtainers.engine.docker.podman_service import PodmanService

_PROBE_SECONDS = 5
_CALL_SECONDS = 120
_MIB = 1024 * 1024
# With one file alone, Docker's `logs -f` stops when it is cut.
_LOG_SIZE, _LOG_FILES = "16m", "2"
_FILE_DRIVERS = {"json-file", "local"}

# What the SDK raises; the last two when an engine goes away while it tells of a pull or build.
_FAILURES = (
    docker.errors.DockerException,
    requests.exceptions.RequestException,
    OSError,
    urllib3.exceptions.HTTPError,
    docker.errors.StreamParseError,
)

_REMEDY = "Use a thread, or connect in the child."

_SUBNET_TAKEN = "Another network has these addresses: choose another subnet."
_ADDRESS_TAKEN = "A VM or container has this address already: ask for another one (ip)."
_NO_PARENT = (
    "Is there such an interface on the engine's host (ip -brief link)? If not, correct parent. "
    "(A rootless engine does not see the host's.)"
)
# What engines say, and what mends it.
_REMEDIES = (
    (
        "error setting rlimit",
        "Podman asked for more open files or processes than this host allows. Put this into "
        "/etc/containers/containers.conf and restart Podman's service:\n"
        '  [containers]\n  default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]',
    ),
    (
        "cgroups in hybrid mode not supported",
        "crun cannot use this host's cgroups. Install runc and start Podman's service with it: "
        "podman --runtime runc system service …",
    ),
    (
        "client_cert param",
        "DOCKER_TLS_VERIFY or DOCKER_CERT_PATH asks for TLS: put ca.pem, cert.pem and key.pem into the folder "
        "DOCKER_CERT_PATH (else ~/.docker), or unset both.",
    ),
    # Networks: as Docker says it, then as Podman does.
    ("failed to allocate gateway", _SUBNET_TAKEN),
    ("already used on the host", _SUBNET_TAKEN),
    ("address already in use", _ADDRESS_TAKEN),
    ("is already allocated", _ADDRESS_TAKEN),
    ("invalid subinterface", _NO_PARENT),
    ("parent interface", _NO_PARENT),
    ("netlink error: no such device", _NO_PARENT),
    (
        "/dev/net/tun",
        "VMs need this device of the engine's host: modprobe tun makes it, and a rootless engine's user has to be "
        "allowed to open it (chmod 666 /dev/net/tun, as most distributions have it).",
    ),
    ("no space left on device", "The engine's disk is full: make room there (docker system df) and try again."),
    ("read-only file system", "The engine cannot write there: choose another place with --virtainer-store."),
    ("permission denied", "Run as a user who may use this engine (for Docker: a member of the group docker)."),
)


class Engine:
    """A connection to a Docker-compatible engine.

    Attributes:
        api: the docker SDK's low-level client.
        kind: `docker` or `podman`.
        url: where it listens.
        version: its version.
        arch: the architecture of its host: `amd64`, `arm64`, …
    """

    def __init__(self, url: str, service: PodmanService | None = None, tls: TLSConfig | None = None) -> None:
        """Connect; raises `docker.errors.DockerException` or `OSError` when nothing answers at `url` within 5 s."""
        self.url = url
        self._service = service
        self._owner = Owner(f"the connection to {url}", _REMEDY)
        _knock(url)
        self.api = Client(base_url=url, timeout=_PROBE_SECONDS, version="auto", tls=tls or False)
        about = self.api.version()
        self.api.timeout = _CALL_SECONDS
        components = {part.get("Name", ""): part for part in about.get("Components") or []}
        self.kind = "podman" if "Podman Engine" in components else "docker"
        self.version = str(about.get("Version", "unknown"))
        self.arch = str(about.get("Arch", "unknown"))
        self._facts: dict[str, Any] = {}

    def __str__(self) -> str:
        private = " (private service)" if self._service else ""
        return f"{self.kind} {self.version} at {self.url}{private}"

    @property
    def lifelines(self) -> tuple[int, ...]:
        """The descriptors that a process has to inherit which uses this engine after us."""
        return () if self._service is None else (self._service.pipe,)

    @property
    def is_local(self) -> bool:
        """Whether it listens on a socket of this host's file system, so that its host is likely this one."""
        return self.url.startswith("unix://")

    def _about_host(self) -> dict[str, Any]:
        """Return what the engine says of itself and its host; it is asked once."""
        if not self._facts:
            self._facts = self.api.info()
        return self._facts

    def memory_mib(self) -> int:
        """Give the memory of the engine's host in MiB."""
        return int(self._about_host()["MemTotal"]) // _MIB

    def storage_driver(self) -> str:
        """Name what it keeps images and containers with, such as `overlay2`, `overlay` or `vfs`."""
        return str(self._about_host().get("Driver", "unknown"))

    def log_config(self) -> LogConfig | None:
        """Return the configuration with which the log of a container stays small; None: the engine's own.

        Of Docker's drivers, those that write files take a limit, and others refuse it; Podman's ignore what they do
        not know.
        """
        if self.kind == "podman":
            return LogConfig(type="", config={"max-size": _LOG_SIZE})  # its only file is cut then
        try:
            driver = self._about_host().get("LoggingDriver", "")
        except docker.errors.APIError:  # it cannot tell
            return None
        if driver not in _FILE_DRIVERS:
            return None
        return LogConfig(type=driver, config={"max-size": _LOG_SIZE, "max-file": _LOG_FILES})

    def memory_used_mib(self, container: str) -> int:
        """Return the MiB that a container takes (without page cache if the engine tells); 0 when it is gone."""
        if (used := self._memory_seen_mib(container)) is not None:
            return used
        try:
            seen: Any = self.api.stats(container, stream=False, one_shot=True)
        except docker.errors.APIError as error:
            # 404 or 409: it has just ended; Podman says 500 in the same case.
            if error.status_code in (404, 409) or (error.status_code, self.kind) == (500, "podman"):
                return 0
            raise
        except requests.exceptions.JSONDecodeError:
            return 0  # Docker has begun to answer when it ends: with nothing
        memory = seen.get("memory_stats") or {}
        details = memory.get("stats") or {}  # cgroup v2 says anon, v1 says rss; Podman says neither
        return int(details.get("anon", details.get("rss", memory.get("usage", 0)))) // _MIB

    def _memory_seen_mib(self, container: str) -> int | None:
        """Return what `memory_used_mib` does, without the engine's statistics; `None` where that is impossible."""
        if not self.is_local:
            return None
        try:
            pid = int(self.api.inspect_container(container)["State"]["Pid"])
        except docker.errors.APIError:
            return None
        return cgroup.memory_used_mib(pid, container)

    def image_id(self, reference: str) -> str:
        """Give the id of an image that the engine has."""
        with self.failures(f"looking at image {reference}"):
            return str(self.api.inspect_image(reference)["Id"])  # type: ignore[no-untyped-call]

    def pull(self, reference: str, tell: Callable[[str], object], arch: str | None = None) -> str:
        """Have the engine pull an image, and give what it said last: Podman tells failures only in that way.

        With `arch`, that for another architecture than the engine's host.
        """
        said, platform = "", f"linux/{arch}" if arch else None
        try:
            for event in self.api.pull(reference, stream=True, decode=True, platform=platform):
                said = str(event.get("error") or event.get("status") or said)
                tell(said)
        except _FAILURES as error:
            said = str(getattr(error, "explanation", None) or error)
        return " ".join(said.split())

    @contextmanager
    def failures(self, action: str) -> Iterator[None]:
        """Turn what the SDK raises inside the block into one `EngineError` that starts with `action`."""
        try:
            yield
        except _FAILURES as error:
            raise EngineError(f"{action} failed: {self} said: {explain(error)}") from error

    def close(self) -> None:
        """Close the connection, and the private service when there is one; a forked child has neither."""
        if not self._owner.is_here:
            return
        self.api.close()
        if self._service is not None:
            self._service.stop()


class Client(docker.APIClient):
    """The SDK's client, with some habits changed, and logs of our own."""

    def __init__(self, base_url: str, **options: Any) -> None:
        self._owner = Owner(f"the connection to {base_url}", _REMEDY)
        super().__init__(base_url=base_url, **options)
        disown_in_child(self)

    def disown(self) -> None:
        """Close a forked child's copies of all connections that are kept for later use."""
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
                    kept.__init__(kept.maxsize)  # empty, and with a lock that no other thread has

    def send(self, request: Any, **options: Any) -> Any:
        """Send a request; all of them come through here. Raise `VirtainerError` in a forked child."""
        self._owner.check()
        return super().send(request, **options)

    def _disable_socket_timeout(self, _socket: Any) -> None:
        """Leave the time limit on each read of a long answer: the SDK would wait on for an engine that hangs."""

    def open_log(self, container: str, *, follow: bool, since: float = 0.0) -> Any:
        """Open the log of a container, as the engine frames it; a container may say nothing for as long as it likes.

        The SDK's own `logs` gives up after a silence, and does not say of which stream a piece is.

        Args:
            container: name or id.
            follow: until the container ends.
            since: seconds since 1970.
        """
        asked = {"stdout": 1, "stderr": 1, "follow": int(follow), "since": since}
        api: Any = self  # what the SDK's own calls are made of has no types
        url = api._url("/containers/{0}/logs", container)
        response = api._get(url, params=asked, stream=True, timeout=(self.timeout, None))
        api._raise_for_status(response)
        return response

    def merge_environment_settings(self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any) -> Any:
        """Ask `requests` with our own certificate authority, even where `REQUESTS_CA_BUNDLE` is set for other things.

        It takes the environment's where a call names none.
        """
        return super().merge_environment_settings(
            url, proxies, stream, self.verify if verify is None else verify, cert
        )


def _knock(url: str) -> None:
    """Connect to a socket in the file system and hang up: the plain reason when it fails, and no socket left open.

    The SDK forgets to close its own when this fails, which a test suite with `error` for warnings would notice.
    """
    if url.startswith("unix://"):
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(_PROBE_SECONDS)
            probe.connect(url.removeprefix("unix://"))


def explain(error: Exception) -> str:
    """Say in one paragraph what an engine's failure means and what mends it."""
    said = str(getattr(error, "explanation", None) or error).strip()
    for sign, remedy in _REMEDIES:
        if sign in said.lower():
            return f"{said}\n{remedy}"
    return said
