"""A container engine in memory, for tests of the packages above `engine/`; mypy checks it against the protocols.

`fake_engine` is for tests of the implementation: it answers over HTTP.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_virtainers.engine import ownership
from pytest_virtainers.engine.facts import Addresses, ContainerInfo, Image, NetworkInfo, Volume
from pytest_virtainers.engine.plan import NetworkPlan, Plan, Port
from pytest_virtainers.errors import EngineError
from tests.unit.fake_output import FakeOutput

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from ipaddress import IPv4Network
    from pathlib import Path

    from pytest_virtainers.engine.base import Container, Engine, Network, Stream
    from pytest_virtainers.engine.plan import Bind
    from pytest_virtainers.engine.tar import Link


def _ok(_command: list[str]) -> tuple[int, bytes]:
    return 0, b""


@dataclass(eq=False)
class MemoryContainer:
    """A container whose commands are answered by a test.

    Attributes:
        answer: returns exit code and output of a command, or raises.
        commands: commands that were run or streamed.
        patience: that of the last command.
        files: the content of files by their path.
        unpacked: tar streams that were put into it, by folder.
        connected: its addresses by network; the empty name is that of its plan.
        next_stream: what `stream` returns.
        events: `start`, `close` and so on, in order.
    """

    plan: Plan = field(default_factory=lambda: Plan("name", "vm", "an-image"))
    answer: Callable[[list[str]], tuple[int, bytes]] = _ok
    stdout: FakeOutput = field(default_factory=FakeOutput)
    stderr: FakeOutput = field(default_factory=FakeOutput)
    ended: bool = False
    commands: list[list[str]] = field(default_factory=list)
    patience: float | None = None
    files: dict[str, bytes | Link] = field(default_factory=dict)
    unpacked: dict[str, bytes] = field(default_factory=dict)
    connected: dict[str, Addresses] = field(default_factory=dict)
    next_stream: Stream | None = None
    events: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.name = self.plan.name
        self.labels: Mapping[str, str] = {**ownership.labels(self.plan.kind, "run"), **self.plan.labels}

    @property
    def id(self) -> str:
        return f"id-of-{self.plan.name}"

    @property
    def environment(self) -> Mapping[str, str]:
        return self.plan.environment

    @property
    def network(self) -> str:
        return self.plan.port.network if self.plan.port else ""

    @property
    def volume(self) -> str | None:
        return self.plan.volume

    @property
    def binds(self) -> tuple[Bind, ...]:
        return self.plan.binds

    def start(self) -> None:
        self.events.append("start")

    def follow(self) -> None:
        self.events.append("follow")

    def logs(self, *, follow: bool) -> Iterator[tuple[bool, bytes]]:
        yield False, bytes(self.stdout)
        yield True, bytes(self.stderr)

    def wait(self, seconds: float) -> bool:
        return self.ended

    def stop(self, seconds: int) -> int | None:
        self.events.append(f"stop {seconds}")
        return 0

    def addresses(self, network: str | None = None, *, refresh: bool = False) -> Addresses:
        return self.connected.get(network or "", Addresses())

    def connect(self, port: Port) -> Addresses:
        return self.connected.setdefault(port.network, Addresses("02:00:00:00:00:01", port.address or "10.0.0.2"))

    def disconnect(self, network: str) -> None:
        self.connected.pop(network, None)

    def run(
        self,
        command: list[str],
        on_output: Callable[[bytes], object] = lambda _data: None,
        *,
        patience: float | None = None,
    ) -> tuple[int, bytes]:
        self.commands.append(command)
        self.patience = patience
        code, output = self.reply(command)
        on_output(output)
        return code, output

    def reply(self, command: list[str]) -> tuple[int, bytes]:
        """Return exit code and output of a command; fakes of certain containers override it."""
        return self.answer(command)

    def stream(self, command: list[str]) -> Stream:
        self.commands.append(command)
        assert self.next_stream is not None
        return self.next_stream

    def put(self, folder: str, members: Mapping[str, bytes | Link]) -> None:
        self.files |= {f"{folder.rstrip('/')}/{name}": content for name, content in members.items()}

    def put_archive(self, folder: str, archive: bytes | Iterator[bytes]) -> None:
        self.unpacked[folder] = archive if isinstance(archive, bytes) else b"".join(archive)

    def archive(self, path: str) -> Iterator[bytes] | None:
        return iter([self.read(path)]) if path in self.files else None

    def fetch(self, path: str, target: Path) -> None:
        target.write_bytes(self.read(path))

    def read(self, path: str) -> bytes:
        content = self.files.get(path)
        if not isinstance(content, bytes):
            raise EngineError(f"copying {path} failed")
        return content

    def keep(self, name: str) -> None:
        self.name = name

    def close(self) -> None:
        self.events.append("close")

    def remove(self) -> None:
        self.events.append("remove")


@dataclass(eq=False)
class MemoryNetwork:
    name: str
    subnet: IPv4Network | None = None
    ipv6: bool = False
    driver: str = "bridge"
    closed: bool = False

    def close(self) -> None:
        self.closed = True


@dataclass(eq=False)
class MemoryEngine:
    """An engine whose objects are set by a test.

    Attributes:
        listed: what `containers` lists.
        created: containers that `factory` created.
        registry: the images that can be pulled, by architecture.
        pulled: what `pull` returns.
        built: the arguments of builds, by tag; `builds` runs for each of them.
    """

    kind: str = "docker"
    url: str = "unix:///nowhere"
    arch: str = "amd64"
    is_local: bool = True
    memory: int = 64 * 1024
    driver: str = "overlay2"
    listed: list[ContainerInfo] = field(default_factory=list)
    used: dict[str, int] = field(default_factory=dict)
    created: list[MemoryContainer] = field(default_factory=list)
    factory: Callable[[Plan], MemoryContainer] = MemoryContainer
    networks_listed: list[NetworkInfo] = field(default_factory=list)
    volumes: dict[str, Volume] = field(default_factory=dict)
    images: dict[str, Image] = field(default_factory=dict)
    registry: dict[str, Image] = field(default_factory=dict)
    pulled: str = "no such manifest"
    built: dict[str, Mapping[str, str]] = field(default_factory=dict)
    builds: Callable[[Callable[[str], object]], object] = lambda _on_line: None
    imported: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    closed: bool = False

    lifelines: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.kind} 1 at {self.url}"

    def memory_mib(self) -> int:
        return self.memory

    def storage_driver(self) -> str:
        return self.driver

    def memory_used_mib(self, container: str) -> int:
        return self.used.get(container, 0)

    def command_line(self) -> list[str]:
        return [self.kind, "--url", self.url]

    def create(self, plan: Plan, run_id: str) -> MemoryContainer:
        self.created.append(self.factory(plan))
        return self.created[-1]

    def adopt(self, name: str) -> MemoryContainer:
        return next(each for each in self.created if name in (each.name, each.id))

    def containers(self, *labels: str) -> list[ContainerInfo]:
        wanted = [each.partition("=") for each in labels]
        return [
            each
            for each in self.listed
            if all(name in each.labels and (not sign or each.labels[name] == value) for name, sign, value in wanted)
        ]

    def create_network(self, plan: NetworkPlan, run_id: str) -> MemoryNetwork:
        self.networks_listed.append(NetworkInfo(plan.name, ownership.labels(plan.kind, run_id), ()))
        return MemoryNetwork(plan.name, ipv6=plan.ipv6, driver=plan.driver)

    def network(self, name: str) -> MemoryNetwork:
        return MemoryNetwork(name)

    def networks(self) -> list[NetworkInfo]:
        return self.networks_listed

    def volume(self, name: str) -> Volume | None:
        self.asked.append(f"volume {name}")
        return self.volumes.get(name)

    def image(self, reference: str) -> Image | None:
        return self.images.get(reference)

    def pull(self, reference: str, on_message: Callable[[str], object], arch: str | None = None) -> str:
        if found := self.registry.get(arch or self.arch):
            self.images[reference] = found
            return "pulled"
        return self.pulled

    def build(
        self,
        context: bytes | Iterator[bytes],
        *,
        tag: str,
        arguments: Mapping[str, str],
        labels: Mapping[str, str],
        on_line: Callable[[str], object],
    ) -> None:
        self.built[tag] = arguments
        self.builds(on_line)
        self.images[tag] = Image(f"sha256:{tag}", self.arch, labels)

    def import_image(self, tarball: str, reference: str) -> None:
        with open(tarball) as file:  # noqa: PTH123
            self.imported[reference] = file.read()
        self.images[reference] = Image(f"sha256:{reference}", self.arch, {})

    def sweep(self, run_id: str | None = None) -> list[str]:
        return []

    def close(self) -> None:
        self.closed = True


def conforms(engine: MemoryEngine, container: MemoryContainer, network: MemoryNetwork) -> None:
    """Never called: mypy compares the fakes with the protocols here."""
    _engine: Engine = engine
    _container: Container = container
    _network: Network = network


def listed(identifier: str, labels: Mapping[str, str], *, state: str = "running", created: int = 0) -> ContainerInfo:
    return ContainerInfo(identifier, f"name-of-{identifier}", labels, state, created, "")
