"""A container that lives no longer than this process, or one that is kept.

Of the first kind, stdin is attached to us before it starts and its first process ends when that stream does (the
lease), so even SIGKILL leaves nothing behind; the engine removes what ended. The same attached stream brings its
output. One that is kept has no lease: any process may follow its output, and it goes when it is removed.
"""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
import threading
import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import IO, TYPE_CHECKING, Any

import docker.errors
from docker.types import Mount, Ulimit

from pytest_virtainers.engine import ownership
from pytest_virtainers.engine.docker.streams import STDERR, Demultiplexer, ExecStream, HijackedSocket, Log, Pieces
from pytest_virtainers.engine.output import Output
from pytest_virtainers.errors import EngineError
from pytest_virtainers.support.forks import Owner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from pytest_virtainers.engine.docker.engine import Engine

_END_SECONDS = 20.0
_CHUNK_BYTES = 64 * 1024
_BEFORE_START_SECONDS = 0.2  # the engine notes a start when it has heard of it, and the container may be quicker


@dataclass(frozen=True)
class Link:
    """A symbolic link to put into a container."""

    target: str


@dataclass(frozen=True)
class Port:
    """A container's place on a network: by which names others find it there, and at which address, if not any."""

    network: str
    aliases: tuple[str, ...] = ()
    address: str | None = None


@dataclass(frozen=True)
class Bind:
    """What a container has at `target`: an absolute directory of the engine's host, or a volume by its name."""

    target: str
    source: str
    writable: bool = False

    @property
    def is_folder(self) -> bool:
        """Whether it is a directory of the engine's host."""
        return self.source.startswith("/")


@dataclass(frozen=True)
class Joint:
    """What a container has on a network; texts are empty where the engine says nothing."""

    mac: str
    address: str
    address6: str = ""
    prefix: int = 32
    """How many bits of the address are its network's."""


@dataclass(frozen=True)
class Plan:
    """What a container should be; sizes in MiB.

    Attributes:
        kind: the value of our label (`vm`, `helper`).
        binds: directories and volumes that it has.
        volume: name of a volume that becomes `/mounted`: made with the container if need be, and ours then, so that
            what is in it can be read when the container is gone.
        folder: absolute directory of the engine's host that becomes `/mounted` instead.
        port: its place on a network; None: the engine's default network.
        offline: whether it has no network at all.
        labels: more labels, beside those of ownership.
        lease: whether it ends with this process.
        auto_remove: whether the engine removes it when it has ended.
        stop_seconds: that the engine waits after SIGTERM when somebody has it stopped; None: its default.
    """

    name: str
    kind: str
    image: str
    entrypoint: tuple[str, ...] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    binds: tuple[Bind, ...] = ()
    volume: str | None = None
    folder: str | None = None
    port: Port | None = None
    offline: bool = False
    devices: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    sysctls: Mapping[str, str] = field(default_factory=dict)
    dns_options: tuple[str, ...] = ()
    memory_mib: int | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    lease: bool = True
    auto_remove: bool = True
    stop_seconds: int | None = None


class Container:
    """One container: created by the constructor, started by `start`, gone after `close` unless it was kept.

    Attributes:
        stdout: what it has written so far, since it was started or followed.
        stderr: likewise.
    """

    _id: str | None
    _port: Port | None
    volume: str | None
    binds: tuple[Bind, ...]

    def __init__(self, engine: Engine, plan: Plan, run_id: str) -> None:
        """Create the container; raises `EngineError`."""
        self._begin(engine, plan.name, plan.environment)
        self.volume = plan.volume
        self.binds = plan.binds
        self._leased = plan.lease
        self._port = plan.port
        with engine.failures(f"creating container {plan.name}"):
            self._id = self._create(plan, run_id)

    @classmethod
    def adopt(cls, engine: Engine, found: Mapping[str, Any]) -> Container:
        """Take over a container that was kept, as the engine describes it; `follow` has its output."""
        self = cls.__new__(cls)
        variables = dict(each.partition("=")[::2] for each in found["Config"]["Env"])
        self._begin(engine, found["Name"].lstrip("/"), variables)
        self._id, self._kept = str(found["Id"]), True
        networks = found["NetworkSettings"]["Networks"] or {}
        self._port = Port(next(iter(networks), found["HostConfig"]["NetworkMode"]))  # it may be disconnected
        return self

    def _begin(self, engine: Engine, name: str, environment: Mapping[str, str]) -> None:
        self.name = name
        self.engine = engine
        self._owner = Owner(f"the container {name}", "Use a thread.")
        self._api = engine.api
        self.stdout, self.stderr = Output(), Output()
        self._ended = threading.Event()
        self._stream: HijackedSocket | Log | None = None
        self._id = None
        self._leased = self._kept = False
        self.environment = environment
        self.volume = self._port = None
        self.binds = ()
        self._joints: dict[str, Joint] = {}

    def _create(self, plan: Plan, run_id: str) -> str:
        mounts = [
            Mount(each.target, each.source, type="bind" if each.is_folder else "volume", read_only=not each.writable)
            for each in plan.binds
        ]
        if plan.volume is not None:
            # Before the container: of the labels that a mount may have, Podman takes none.
            self._api.create_volume(plan.volume, labels=ownership.labels("disk", run_id))
            mounts.append(Mount("/mounted", plan.volume, type="volume"))
        if plan.folder is not None:
            mounts.append(Mount("/mounted", plan.folder, type="bind"))
        host_config = self._api.create_host_config(
            auto_remove=plan.auto_remove,
            cap_drop=["ALL"],
            cap_add=list(plan.capabilities),
            security_opt=["no-new-privileges"],
            devices=[f"{device}:{device}:rwm" for device in plan.devices],
            sysctls=dict(plan.sysctls),
            dns_opt=list(plan.dns_options),
            mem_limit=f"{plan.memory_mib}m" if plan.memory_mib else None,
            pids_limit=1024,
            # Podman otherwise asks for its own defaults, which some hosts refuse.
            ulimits=[Ulimit(name="nofile", soft=1024, hard=1024), Ulimit(name="nproc", soft=4096, hard=4096)],
            mounts=mounts,
            network_mode="none" if plan.offline else plan.port.network if plan.port else None,
            log_config=self.engine.log_config(),
        )
        networking: Any = None
        if plan.port is not None:
            own = {"IPAMConfig": {"IPv4Address": plan.port.address}} if plan.port.address else {}
            networking = {"EndpointsConfig": {plan.port.network: {"Aliases": list(plan.port.aliases), **own}}}
        created = self._api.create_container(
            plan.image,
            entrypoint=list(plan.entrypoint) if plan.entrypoint else None,
            name=plan.name,
            environment=dict(plan.environment),
            labels={**ownership.labels(plan.kind, run_id), **plan.labels},
            stop_timeout=plan.stop_seconds,
            stdin_open=plan.lease,  # with detach left off, the SDK sets StdinOnce too: the lease
            host_config=host_config,
            networking_config=networking,
        )
        return str(created["Id"])

    @property
    def network(self) -> str:
        """The engine's name of the network that it was made on."""
        return self._port.network if self._port else ""

    @property
    def id(self) -> str:
        """The engine's id of this container; raises `VirtainerError` in a forked child."""
        self._owner.check()
        if self._id is None:
            raise EngineError(f"container {self.name} is gone")
        return self._id

    def put(self, folder: str, members: Mapping[str, bytes | Link]) -> None:
        """Put small files, private to root, and links into `folder`, which must exist, before or after the start."""
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            for name, content in members.items():
                entry = tarfile.TarInfo(name)
                entry.mtime = int(time.time())  # the store's housekeeping goes by it
                if isinstance(content, Link):
                    entry.type, entry.linkname = tarfile.SYMTYPE, content.target
                    tar.addfile(entry)
                else:
                    entry.size, entry.mode = len(content), 0o600
                    tar.addfile(entry, io.BytesIO(content))
        self.put_archive(folder, archive.getvalue())

    def put_archive(self, folder: str, archive: bytes | Iterator[bytes]) -> None:
        """Unpack a tar stream into `folder`."""
        with self.engine.failures(f"copying into container {self.name}"):
            self._api.put_archive(self.id, folder, archive)

    def start(self) -> None:
        """Take the lease, then start; a container that does not start is removed."""
        streams = {"stdout": 1, "stderr": 1, "stream": 1, **({"stdin": 1} if self._leased else {})}
        try:
            with self.engine.failures(f"starting container {self.name}"):
                attached = HijackedSocket(self._api.attach_socket(self.id, params=streams))
                self._collect_from(attached, _frames(attached))
                self._api.start(self.id)
        except BaseException:
            self.close()
            raise

    def follow(self) -> None:
        """Have the output of one that runs and was adopted, from its last start on; raises `EngineError`."""
        # Attaching with what was said before would do, but Podman 4.3 gets the frames of that wrong.
        with self.engine.failures(f"following container {self.name}"):
            started = datetime.fromisoformat(self._api.inspect_container(self.id)["State"]["StartedAt"])
            log = Log(self._api.open_log(self.id, follow=True, since=started.timestamp() - _BEFORE_START_SECONDS))
        self._collect_from(log, log)

    def _collect_from(self, stream: HijackedSocket | Log, pieces: Iterable[tuple[bool, bytes]]) -> None:
        """Collect what comes in a thread, until `close`."""
        self._stream = stream
        threading.Thread(target=self._collect, args=(pieces,), name=self.name, daemon=True).start()

    def _collect(self, pieces: Iterable[tuple[bool, bytes]]) -> None:
        with contextlib.suppress(OSError, ValueError):
            for of_stderr, piece in pieces:
                (self.stderr if of_stderr else self.stdout).append(piece)
        self._ended.set()
        for output in (self.stdout, self.stderr):
            output.end()

    @property
    def ended(self) -> bool:
        """Whether its streams have reached their end, which they do when it ends."""
        return self._ended.is_set()

    def wait(self, seconds: float) -> bool:
        """Wait until it has ended, at most `seconds`; tell whether it has."""
        return self._ended.wait(seconds)

    def joint(self, network: str | None = None, *, again: bool = False) -> Joint:
        """Return what it has on a network, by default on that of its plan; raises `EngineError`.

        With `again`, the engine is asked even if it has said that before.
        """
        name = network or (self._port.network if self._port else "")
        if again or name not in self._joints:
            with self.engine.failures(f"asking for the addresses of {self.name}"):
                found: dict[str, Any] = self._api.inspect_container(self.id)["NetworkSettings"]["Networks"] or {}
            self._joints = {
                each: Joint(
                    facts["MacAddress"].lower(),
                    facts["IPAddress"],
                    facts.get("GlobalIPv6Address") or "",
                    facts.get("IPPrefixLen") or 32,
                )
                for each, facts in found.items()
            }
        return self._joints.get(name, Joint("", ""))

    def connect(self, port: Port) -> Joint:
        """Connect it, while it runs, to one more network; raises `EngineError`."""
        with self.engine.failures(f"connecting {self.name} to network {port.network}"):
            self._api.connect_container_to_network(
                self.id, port.network, aliases=list(port.aliases), ipv4_address=port.address
            )
        return self.joint(port.network)

    def disconnect(self, network: str) -> None:
        """Take it off a network again, if it is still there; raises `EngineError`."""
        self._joints.pop(network, None)
        with self.engine.failures(f"disconnecting {self.name} from network {network}"):
            try:
                self._api.disconnect_container_from_network(self.id, network, force=True)
            except docker.errors.APIError:
                if self.joint(network, again=True).mac:  # else somebody was faster, or has removed the network
                    raise

    def run(
        self,
        command: list[str],
        on_output: Callable[[bytes], object] = lambda _data: None,
        *,
        patience: float | None = None,
    ) -> tuple[int, bytes]:
        """Run a command inside; give its exit code and both streams as one.

        Args:
            command: a list of words.
            on_output: is given each piece of output as it comes.
            patience: seconds for which it may say nothing before it is left to itself; None: no limit.

        Raises:
            EngineError: the engine failed, or the patience was over.
        """
        output, frames = bytearray(), Demultiplexer()
        with self.engine.failures(f"running {command[0]} in {self.name}"):
            session = self._api.exec_create(self.id, command)["Id"]
            hijacked = HijackedSocket(self._api.exec_start(session, socket=True))
            hijacked.settimeout(patience)
            try:
                while data := hijacked.recv():
                    for _, piece in frames.feed(data):
                        output += piece
                        on_output(piece)
            except TimeoutError:
                raise EngineError(f"{command[0]} in {self.name} has said nothing for {patience:g} s") from None
            finally:
                hijacked.close()
            code = self._api.exec_inspect(session)["ExitCode"]
        return (-1 if code is None else int(code)), bytes(output)

    def stream(self, command: list[str]) -> ExecStream:
        """Run a command inside and give its stdin and stdout as a socket."""
        return exec_stream(self.engine, self.id, command)

    def fetch(self, path: str, target: Path) -> None:
        """Copy a file out of it into a new private file, which must not be there; long runs of zeros become holes.

        Raises:
            EngineError: the engine failed, or sent nothing for the time that any of its answers may take.
        """
        with self.engine.failures(f"copying {path} out of container {self.name}"):
            pieces, _ = self._api.get_archive(self.id, path)
            stream: Any = Pieces(iter(pieces))
            try:
                with tarfile.open(fileobj=stream, mode="r|") as tar:
                    entry = tar.next()
                    content = None if entry is None else tar.extractfile(entry)
                    if content is None:
                        raise OSError(f"{path} is no file")
                    _write_sparse(content, target)
            except tarfile.TarError as error:
                raise OSError(f"it broke off: {error}") from error

    def archive(self, path: str) -> Iterator[bytes] | None:
        """Give a file or folder in it as a tar stream; None when there is nothing there; raises `EngineError`."""
        with self.engine.failures(f"copying {path} out of container {self.name}"):
            try:
                pieces: Iterator[bytes] = self._api.get_archive(self.id, path)[0]
            except docker.errors.NotFound:
                return None
        return pieces

    def read(self, path: str) -> bytes:
        """Give the content of a small file in it, whether it runs or not; raises `EngineError`."""
        with self.engine.failures(f"reading {path} in container {self.name}"):
            pieces, _ = self._api.get_archive(self.id, path)
            with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as tar:
                content = tar.extractfile(tar.getmembers()[0])
                return b"" if content is None else content.read()

    def keep(self, name: str) -> None:
        """Give it its lasting name; from now on `close` leaves it; raises `EngineError`."""
        with self.engine.failures(f"calling container {self.name} {name}"):
            self._api.rename(self.id, name)
        self.name, self._kept = name, True

    def close(self) -> None:
        """End the lease, remove the container and its volume; what is gone already is well; raises `EngineError`.

        One that was kept is let go of. A forked child leaves it to its parent.
        """
        if not self._owner.is_here:
            return
        if self._stream is not None:
            self._stream.close()
        if self._kept:
            return
        self.remove()
        if self.volume is not None:
            self._remove_volume(self.volume)
            self.volume = None

    def _remove_volume(self, name: str) -> None:
        deadline = time.monotonic() + _END_SECONDS
        with self.engine.failures(f"removing volume {name}"):
            while True:
                try:
                    self._api.remove_volume(name)
                except docker.errors.NotFound:
                    return
                except docker.errors.APIError:  # the container, which is just going, still has it
                    if time.monotonic() > deadline:
                        raise
                else:
                    return
                time.sleep(0.1)

    def remove(self) -> None:
        """Remove it, also one that was kept, but no volume with a name; raises `EngineError`."""
        if not self._owner.is_here:
            return
        identifier, self._id = self._id, None
        if identifier is None:
            return
        deadline = time.monotonic() + _END_SECONDS
        while time.monotonic() < deadline:
            with self.engine.failures(f"removing container {self.name}"):
                try:
                    self._api.remove_container(identifier, force=True, v=True)
                except docker.errors.NotFound:
                    return
                except docker.errors.APIError as error:
                    # 409: the engine is removing it already, because it ended; 500 from Podman in the same case.
                    if error.status_code not in (409, 500):
                        raise
                else:
                    return
            time.sleep(0.1)
        raise EngineError(f"container {self.name} ({identifier[:12]}) was not removed within {_END_SECONDS:.0f} s")


def _frames(attached: HijackedSocket) -> Iterator[tuple[bool, bytes]]:
    """Give what comes through an attached stream: whether it is of stderr, and the bytes."""
    frames = Demultiplexer()
    while data := attached.recv():
        for stream, payload in frames.feed(data):
            yield stream == STDERR, payload


def _write_sparse(content: IO[bytes], target: Path) -> None:
    created = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(created, "wb") as file:
        while data := content.read(_CHUNK_BYTES):
            if data.strip(b"\0"):
                file.write(data)
            else:
                file.seek(len(data), io.SEEK_CUR)
        file.truncate()


def exec_stream(engine: Engine, container: str, command: list[str]) -> ExecStream:
    """Run a command in a container and give its stdin and stdout as a socket; raises `EngineError`."""
    with engine.failures(f"running {command[0]} in container {container[:12]}"):
        session = engine.api.exec_create(container, command, stdin=True)["Id"]
        return ExecStream(HijackedSocket(engine.api.exec_start(session, socket=True)))
