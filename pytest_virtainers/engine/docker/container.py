"""A container that ends with this process, or one that is kept.

The first kind has a lease: its stdin is attached to this process before it starts, and its first process ends when
that stream does. So even SIGKILL leaves nothing behind, as the engine removes what has ended. The attached stream
also brings its output. A kept container has no lease: any process may follow its output.
"""

from __future__ import annotations

import contextlib
import threading
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

import docker.errors

from pytest_virtainers.engine import ownership, tar
from pytest_virtainers.engine.docker import creation
from pytest_virtainers.engine.docker.removal import remove
from pytest_virtainers.engine.docker.streams import Demultiplexer, ExecStream, HijackedSocket, Log, frames
from pytest_virtainers.engine.facts import Addresses
from pytest_virtainers.engine.output import Output
from pytest_virtainers.errors import EngineError
from pytest_virtainers.support.forks import Owner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from pytest_virtainers.engine.docker.engine import DockerEngine
    from pytest_virtainers.engine.plan import Bind, Plan, Port
    from pytest_virtainers.engine.tar import Link

_BEFORE_START_SECONDS = 0.2  # the engine notes the time of a start after the fact, and the container may be quicker
# Messages about a container that was removed when it ended (--rm); Podman's status is 500 then.
_REMOVED = ("no such container", "has already been removed", "is in state removing")


class DockerContainer:
    """One container; the methods are described in `engine.base.Container`."""

    _id: str | None
    environment: Mapping[str, str]
    labels: Mapping[str, str]
    binds: tuple[Bind, ...]
    volume: str | None

    def __init__(self, engine: DockerEngine, plan: Plan, run_id: str) -> None:
        """Create the container; raise `EngineError`."""
        self._begin(engine, plan.name)
        self.environment, self.binds, self.volume = plan.environment, plan.binds, plan.volume
        self.labels = {**ownership.labels(plan.kind, run_id), **plan.labels}
        self._leased, self._network = plan.lease, plan.port.network if plan.port else ""
        with engine.failures(f"creating container {plan.name}"):
            self._id = creation.create(engine, plan, self.labels, run_id)

    @classmethod
    def adopt(cls, engine: DockerEngine, found: Mapping[str, Any]) -> DockerContainer:
        """Adopt an existing container, as the engine describes it."""
        self = cls.__new__(cls)
        self._begin(engine, found["Name"].lstrip("/"))
        self._id, self._kept = str(found["Id"]), True
        self.environment = dict(each.partition("=")[::2] for each in found["Config"]["Env"])
        self.labels = found["Config"].get("Labels") or {}
        self.binds, self.volume = (), None
        networks = found["NetworkSettings"]["Networks"] or {}
        self._network = next(iter(networks), found["HostConfig"]["NetworkMode"])  # it may be disconnected
        return self

    def _begin(self, engine: DockerEngine, name: str) -> None:
        self.name = name
        self._engine, self._api = engine, engine.api
        self._owner = Owner(f"the container {name}", "Use a thread.")
        self.stdout, self.stderr = Output(), Output()
        self._ended = threading.Event()
        self._stream: HijackedSocket | Log | None = None
        self._id = None
        self._leased = self._kept = False
        self._addresses: dict[str, Addresses] = {}

    @property
    def id(self) -> str:
        self._owner.check()
        if self._id is None:
            raise EngineError(f"container {self.name} has been removed")
        return self._id

    @property
    def network(self) -> str:
        return self._network

    @property
    def ended(self) -> bool:
        return self._ended.is_set()

    def start(self) -> None:
        if self._kept:
            with self._engine.failures(f"starting container {self.name}"):
                self._api.start(self.id)
            return
        streams = {"stdout": 1, "stderr": 1, "stream": 1, **({"stdin": 1} if self._leased else {})}
        try:
            with self._engine.failures(f"starting container {self.name}"):
                attached = HijackedSocket(self._api.attach_socket(self.id, params=streams))
                self._collect_from(attached, frames(attached))
                self._api.start(self.id)
        except BaseException:
            self.close()
            raise

    def follow(self) -> None:
        # Attaching with earlier output would be enough, but Podman 4.3 sends wrong frames for it.
        with self._engine.failures(f"following container {self.name}"):
            started = datetime.fromisoformat(self._api.inspect_container(self.id)["State"]["StartedAt"])
            log = Log(self._api.open_log(self.id, follow=True, since=started.timestamp() - _BEFORE_START_SECONDS))
        self._collect_from(log, log)

    def logs(self, *, follow: bool) -> Iterator[tuple[bool, bytes]]:
        with self._engine.failures(f"reading the log of container {self.name}"):
            log = Log(self._api.open_log(self.id, follow=follow))
        try:
            yield from log
        finally:
            log.close()

    def _collect_from(self, stream: HijackedSocket | Log, pieces: Iterable[tuple[bool, bytes]]) -> None:
        """Collect output in a thread, until `close`."""
        self._stream = stream
        threading.Thread(target=self._collect, args=(pieces,), name=self.name, daemon=True).start()

    def _collect(self, pieces: Iterable[tuple[bool, bytes]]) -> None:
        with contextlib.suppress(OSError, ValueError):
            for of_stderr, piece in pieces:
                (self.stderr if of_stderr else self.stdout).append(piece)
        self._ended.set()
        for output in (self.stdout, self.stderr):
            output.end()

    def wait(self, seconds: float) -> bool:
        return self._ended.wait(seconds)

    def stop(self, seconds: int) -> int | None:
        with self._engine.failures(f"stopping container {self.name}"):
            try:
                self._api.stop(self.id, timeout=seconds)
                return int(self._api.inspect_container(self.id)["State"]["ExitCode"])
            except docker.errors.APIError as error:
                if not any(sign in str(error.explanation).lower() for sign in _REMOVED):
                    raise
        return None

    def addresses(self, network: str | None = None, *, refresh: bool = False) -> Addresses:
        name = network or self._network
        if refresh or name not in self._addresses:
            with self._engine.failures(f"reading the addresses of container {self.name}"):
                found: dict[str, Any] = self._api.inspect_container(self.id)["NetworkSettings"]["Networks"] or {}
            self._addresses = {
                each: Addresses(
                    facts["MacAddress"].lower(),
                    facts["IPAddress"],
                    facts.get("GlobalIPv6Address") or "",
                    facts.get("IPPrefixLen") or 32,
                )
                for each, facts in found.items()
            }
        return self._addresses.get(name, Addresses())

    def connect(self, port: Port) -> Addresses:
        with self._engine.failures(f"connecting {self.name} to network {port.network}"):
            self._api.connect_container_to_network(
                self.id, port.network, aliases=list(port.aliases), ipv4_address=port.address
            )
        return self.addresses(port.network)

    def disconnect(self, network: str) -> None:
        self._addresses.pop(network, None)
        with self._engine.failures(f"disconnecting {self.name} from network {network}"):
            try:
                self._api.disconnect_container_from_network(self.id, network, force=True)
            except docker.errors.APIError:
                if self.addresses(network, refresh=True).mac:  # else it was disconnected in between
                    raise

    def run(
        self,
        command: list[str],
        on_output: Callable[[bytes], object] = lambda _data: None,
        *,
        patience: float | None = None,
    ) -> tuple[int, bytes]:
        output, demultiplexer = bytearray(), Demultiplexer()
        with self._engine.failures(f"running {command[0]} in {self.name}"):
            session = self._api.exec_create(self.id, command)["Id"]
            hijacked = HijackedSocket(self._api.exec_start(session, socket=True))
            hijacked.settimeout(patience)
            try:
                while data := hijacked.recv():
                    for _, piece in demultiplexer.feed(data):
                        output += piece
                        on_output(piece)
            except TimeoutError:
                raise EngineError(f"{command[0]} in {self.name} was silent for {patience:g} s") from None
            finally:
                hijacked.close()
            code = self._api.exec_inspect(session)["ExitCode"]
        return (-1 if code is None else int(code)), bytes(output)

    def stream(self, command: list[str]) -> ExecStream:
        with self._engine.failures(f"running {command[0]} in {self.name}"):
            session = self._api.exec_create(self.id, command, stdin=True)["Id"]
            return ExecStream(HijackedSocket(self._api.exec_start(session, socket=True)))

    def put(self, folder: str, members: Mapping[str, bytes | Link]) -> None:
        now = int(time.time())  # eviction from the store depends on it
        entries = [tar.entry(name, content, modified=now) for name, content in members.items()]
        self.put_archive(folder, b"".join((*entries, tar.END)))

    def put_archive(self, folder: str, archive: bytes | Iterator[bytes]) -> None:
        with self._engine.failures(f"copying into container {self.name}"):
            self._api.put_archive(self.id, folder, archive)

    def archive(self, path: str) -> Iterator[bytes] | None:
        with self._copying(path):
            try:
                pieces = self._get(path)
            except docker.errors.NotFound:
                return None
        return self._translated(pieces, path)

    def _translated(self, pieces: Iterator[bytes], path: str) -> Iterator[bytes]:
        with self._copying(path):
            yield from pieces

    def fetch(self, path: str, target: Path) -> None:
        with self._copying(path):
            tar.extract_file(self._get(path), path, target)

    def read(self, path: str) -> bytes:
        with self._copying(path):
            return tar.read_file(self._get(path))

    def _get(self, path: str) -> Iterator[bytes]:
        pieces: Iterator[bytes] = self._api.get_archive(self.id, path)[0]
        return pieces

    def _copying(self, path: str) -> contextlib.AbstractContextManager[None]:
        return self._engine.failures(f"copying {path} out of container {self.name}")

    def keep(self, name: str) -> None:
        with self._engine.failures(f"renaming container {self.name} to {name}"):
            self._api.rename(self.id, name)
        self.name, self._kept = name, True

    def close(self) -> None:
        if not self._owner.is_here:
            return
        if self._stream is not None:
            self._stream.close()
        if self._kept:
            return
        self.remove()
        if (volume := self.volume) is not None:
            remove(self._engine, f"volume {volume}", lambda: self._api.remove_volume(volume))
            self.volume = None

    def remove(self) -> None:
        if not self._owner.is_here:
            return
        identifier, self._id = self._id, None
        if identifier is not None:
            remove(
                self._engine,
                f"container {self.name}",
                lambda: self._api.remove_container(identifier, force=True, v=True),
            )
