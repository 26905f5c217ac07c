"""A connection to Docker or Podman."""

from __future__ import annotations

import io
import os
import socket
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import docker.errors
import requests.exceptions
from docker.types import LogConfig

from pytest_virtainers.engine.docker import cgroup, contexts
from pytest_virtainers.engine.docker.client import FORK_REMEDY, Client
from pytest_virtainers.engine.docker.container import DockerContainer
from pytest_virtainers.engine.docker.failures import FAILURES, explain, message, reason
from pytest_virtainers.engine.docker.network import CreatedNetwork, ExistingNetwork, subnets_of
from pytest_virtainers.engine.docker.sweep import sweep
from pytest_virtainers.engine.facts import ContainerInfo, Image, NetworkInfo, Volume
from pytest_virtainers.errors import EngineError, ImageError
from pytest_virtainers.support.forks import Owner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pytest_virtainers.engine.docker.podman_service import PodmanService
    from pytest_virtainers.engine.plan import NetworkPlan, Plan

_PROBE_SECONDS = 5
_CALL_SECONDS = 120
_MIB = 1024 * 1024
# With only one file, `docker logs -f` stops when the engine cuts it.
_LOG_SIZE, _LOG_FILES = "16m", "2"
_FILE_DRIVERS = {"json-file", "local"}
_BUILD_LINES = 20


class DockerEngine:
    """Docker, or Podman through its Docker-compatible API; the methods are described in `engine.base.Engine`.

    Attributes:
        api: the docker SDK's low-level client.
        kind: `docker` or `podman`.
        url: where it listens.
        version: its version.
        arch: the architecture of its host.
    """

    def __init__(
        self, url: str, environ: Mapping[str, str] = os.environ, service: PodmanService | None = None
    ) -> None:
        """Connect; raise `EngineError` with the mere reason when nothing answers at `url` within 5 s.

        Args:
            url: where the engine listens.
            environ: variables with Docker's TLS settings.
            service: a private Podman, which ends with this connection.
        """
        self.url = url
        self._service = service
        self._owner = Owner(f"the connection to {url}", FORK_REMEDY)
        try:
            _knock(url)
            tls = contexts.tls(url, environ) or False
            self.api = Client(base_url=url, timeout=_PROBE_SECONDS, version="auto", tls=tls)
            about = self.api.version()
        except (*FAILURES, ValueError) as error:
            raise EngineError(reason(error)) from error
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
        return () if self._service is None else (self._service.pipe,)

    @property
    def is_local(self) -> bool:
        return self.url.startswith("unix://")

    def memory_mib(self) -> int:
        return int(self._about_host()["MemTotal"]) // _MIB

    def storage_driver(self) -> str:
        return str(self._about_host().get("Driver", "unknown"))

    def _about_host(self) -> dict[str, Any]:
        """Return what the engine reports about itself and its host; it is asked once."""
        if not self._facts:
            with self.failures("reading the engine's configuration"):
                self._facts = self.api.info()
        return self._facts

    def log_config(self) -> LogConfig | None:
        """Return the configuration that limits the log of a container; `None`: the engine's own.

        Of Docker's drivers, those that write files take a limit, and the others refuse it. Podman's drivers ignore
        options that they do not know.
        """
        if self.kind == "podman":
            return LogConfig(type="", config={"max-size": _LOG_SIZE})  # Podman truncates its only file
        try:
            driver = self._about_host().get("LoggingDriver", "")
        except EngineError:
            return None
        if driver not in _FILE_DRIVERS:
            return None
        return LogConfig(type=driver, config={"max-size": _LOG_SIZE, "max-file": _LOG_FILES})

    def memory_used_mib(self, container: str) -> int:
        if (used := self.memory_seen_mib(container)) is not None:
            return used
        with self.failures(f"reading the memory use of container {container}"):
            try:
                seen: Any = self.api.stats(container, stream=False, one_shot=True)
            except docker.errors.APIError as error:
                # 404 or 409: it has just ended; Podman says 500 in the same case.
                if error.status_code in (404, 409) or (error.status_code, self.kind) == (500, "podman"):
                    return 0
                raise
            except requests.exceptions.JSONDecodeError:
                return 0  # it ended while Docker answered: the answer is empty
        memory = seen.get("memory_stats") or {}
        details = memory.get("stats") or {}  # `anon` in cgroup v2, `rss` in v1; neither from Podman
        return int(details.get("anon", details.get("rss", memory.get("usage", 0)))) // _MIB

    def memory_seen_mib(self, container: str) -> int | None:
        """Read from the control group what `memory_used_mib` returns; `None` where that is impossible."""
        if not self.is_local:
            return None
        try:
            pid = int(self.api.inspect_container(container)["State"]["Pid"])
        except FAILURES:
            return None
        return cgroup.memory_used_mib(pid, container)

    def command_line(self) -> list[str]:
        return contexts.command_line(self.kind, self.url)

    def create(self, plan: Plan, run_id: str) -> DockerContainer:
        return DockerContainer(self, plan, run_id)

    def adopt(self, name: str) -> DockerContainer:
        with self.failures(f"inspecting container {name}"):
            return DockerContainer.adopt(self, self.api.inspect_container(name))

    def containers(self, *labels: str) -> list[ContainerInfo]:
        with self.failures("listing containers"):
            found = self.api.containers(all=True, filters={"label": list(labels)})
        return [_container_info(each) for each in found]

    def create_network(self, plan: NetworkPlan, run_id: str) -> CreatedNetwork:
        return CreatedNetwork(self, plan, run_id)

    def network(self, name: str) -> ExistingNetwork:
        return ExistingNetwork(self, name)

    def networks(self) -> list[NetworkInfo]:
        with self.failures("listing networks"):
            found = self.api.networks()
        return [NetworkInfo(each["Name"], each.get("Labels") or {}, tuple(subnets_of(each))) for each in found]

    def volume(self, name: str) -> Volume | None:
        with self.failures(f"inspecting volume {name}"):
            try:
                return _volume(self.api.inspect_volume(name))
            except docker.errors.NotFound:
                return None

    def image(self, reference: str) -> Image | None:
        with self.failures(f"inspecting image {reference}"):
            try:
                found: Any = self.api.inspect_image(reference)  # type: ignore[no-untyped-call]
            except docker.errors.NotFound:
                return None
        labels = (found.get("Config") or {}).get("Labels") or {}
        return Image(str(found["Id"]), str(found.get("Architecture", "")), labels)

    def pull(self, reference: str, on_message: Callable[[str], object], arch: str | None = None) -> str:
        said, platform = "", f"linux/{arch}" if arch else None
        try:
            for event in self.api.pull(reference, stream=True, decode=True, platform=platform):
                said = str(event.get("error") or event.get("status") or said)  # Podman reports failures only here
                on_message(said)
        except FAILURES as error:
            said = message(error)
        return " ".join(said.split())

    def build(
        self,
        context: bytes | Iterator[bytes],
        *,
        tag: str,
        arguments: Mapping[str, str],
        labels: Mapping[str, str],
        on_line: Callable[[str], object],
    ) -> None:
        # An iterator is sent in pieces; the SDK's types know files only.
        file: Any = io.BytesIO(context) if isinstance(context, bytes) else context
        last, failed = deque[str](maxlen=_BUILD_LINES), False
        with self.failures(f"building image {tag}"):
            events = self.api.build(
                fileobj=file,
                custom_context=True,
                tag=tag,
                buildargs=dict(arguments),
                labels=dict(labels),
                rm=True,
                forcerm=True,
                decode=True,
            )
            for event in events:
                failed = failed or bool(event.get("error"))
                for line in str(event.get("error") or event.get("stream") or "").splitlines():
                    last.append(line)
                    on_line(line)
        if failed or self.image(tag) is None:
            lines = "\n".join(f"  | {line}" for line in last)
            raise ImageError(f"building image {tag} failed on {self}. The last lines of the build:\n{lines}")

    def import_image(self, tarball: str, reference: str) -> None:
        with self.failures(f"importing image {reference}"):
            self.api.import_image(src=tarball, repository=reference)  # with its tag: Podman 4.3 ignores `tag`

    def sweep(self, run_id: str | None = None) -> list[str]:
        return sweep(self, run_id)

    @contextmanager
    def failures(self, action: str) -> Iterator[None]:
        """Turn what the SDK raises inside the block into an `EngineError` that starts with `action`."""
        try:
            yield
        except FAILURES as error:
            raise EngineError(f"{action} failed: {self} said: {explain(error)}") from error

    def close(self) -> None:
        if not self._owner.is_here:
            return
        self.api.close()
        if self._service is not None:
            self._service.stop()


def _container_info(found: Mapping[str, Any]) -> ContainerInfo:
    networks = (found.get("NetworkSettings") or {}).get("Networks") or {}
    return ContainerInfo(
        id=str(found["Id"]),
        name=(found.get("Names") or [""])[0].lstrip("/"),
        labels=found.get("Labels") or {},
        state=str(found.get("State", "")),
        created=int(found.get("Created", 0)),
        address=next((each["IPAddress"] for each in networks.values()), ""),
    )


def _volume(found: Mapping[str, Any]) -> Volume:
    """Find out where its files are; those of other drivers, or with options, are mounted for containers only."""
    where = found.get("Mountpoint")
    is_plain = found.get("Driver") == "local" and not found.get("Options") and str(where).startswith("/")
    return Volume(str(where) if is_plain else "", str(found.get("CreatedAt", "")))


def _knock(url: str) -> None:
    """Connect to a Unix socket and hang up: this gives the plain reason of a failure, and leaves no socket open.

    The SDK does not close its own socket when it cannot connect, which test suites with `error` for warnings notice.
    """
    if url.startswith("unix://"):
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(_PROBE_SECONDS)
            probe.connect(url.removeprefix("unix://"))
