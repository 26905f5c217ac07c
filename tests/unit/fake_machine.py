"""A fake VM whose evidence is collected; nothing runs."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import IO, TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from pytest_virtainers.config.network_spec import DEFAULT
from pytest_virtainers.config.settings import resolve
from pytest_virtainers.config.spec import merge
from pytest_virtainers.errors import EngineError
from pytest_virtainers.ssh.keys import Keys
from pytest_virtainers.vm.console import Console
from pytest_virtainers.vm.log import CommandLog
from tests.unit.fake_output import FakeOutput
from tests.unit.fake_qcow2 import head
from tests.unit.memory_engine import MemoryContainer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from pytest_virtainers.config.spec import Spec

KEYS = Keys.generate()
OVERLAY = head(length=104)[:1024]


class FakeContainer(MemoryContainer):
    """Its command `evidence` has the result in `evidence` for its options, and makes the files `files`."""

    def __init__(self) -> None:
        super().__init__(
            stdout=FakeOutput(b"login:\r\n"),
            stderr=FakeOutput(b'{"event": "guest-panicked"}\nTraceback:\n'),
            files={"overlay.qcow2": OVERLAY, "seed.iso": b"seed", "state": b"memory"},
        )
        self.folder = "/mounted"
        self.asked: list[list[str]] = []
        self.evidence: dict[tuple[str, ...], tuple[int, bytes] | BaseException] = {}

    @override
    def reply(self, command: list[str]) -> tuple[int, bytes]:
        if command == ["rm", "-rf", f"{self.folder}/evidence"]:
            self.files = {}
            return 0, b""
        self.asked.append(command)
        memory = "--memory" in command
        facts = {"base": "/store/disk.qcow2", "memory": memory}
        ends = self.evidence.get(tuple(command[1:]), (0, b"\na warning\n" + json.dumps(facts).encode() + b"\n\n"))
        if isinstance(ends, BaseException):
            raise ends
        return ends

    @override
    def fetch(self, path: str, target: Path) -> None:
        target.write_bytes(b"a part")
        target.write_bytes(self.read(path.removeprefix(f"{self.folder}/evidence/")))


class FakeMachine:
    """Root commands get their results from `answers`; exceptions there, and then in `breaks`, are raised."""

    arch = "amd64"
    firmware = "bios"

    def __init__(self, name: str = "web") -> None:
        self.name, self.user, self.alive = name, "debian", True
        self.spec = merge(resolve([]).shape, {"name": name})
        self.seed_iso, self.folder = b"", "/mounted"
        self.network = SimpleNamespace(spec=DEFAULT.of_first_card(internet=True))
        self.keys = KEYS
        self.log = CommandLog()
        self.container = FakeContainer()
        self.console = Console(self.container, name)
        self.answers: Mapping[str, bytes | BaseException] = {}
        self.breaks: Mapping[str, BaseException] = {}
        self.picture: bytes | BaseException = b"\x89PNG"
        self.asked: list[str] = []
        self.refuses_to_go = False
        self.runs = True

    @property
    def machine(self) -> FakeMachine:
        return self

    screen = access = machine

    def scaled(self, seconds: float) -> float:
        return seconds

    def screenshot(self, path: Path) -> None:
        path.write_bytes(b"a part")
        path.write_bytes(_or_raise(self.picture))

    def _as_root(self, script: str, timeout: float) -> bytes:
        assert timeout > 0
        self.asked.append(script)
        word = _word(script)
        return _or_raise(self.answers.get(word, b"" if word == "coredump" else f"{word} said\n".encode()))

    def root_shell(
        self, words: list[str], *, stdin: object, stdout: Callable[[bytes], object], timeout: float
    ) -> tuple[int, str]:
        """Run a script, or copy a file out of the guest, which fails."""
        assert stdin is None
        word = _word(words[-1])
        if not word:
            return 1, "tar: it broke"
        stdout(self._as_root(words[-1], timeout))
        if word in self.breaks:
            raise self.breaks[word]
        return 0, ""

    @property
    def ssh_command(self) -> str:
        return f"ssh {self.name}"

    @property
    def console_command(self) -> str:
        return f"docker exec -it {self.name} console"


def _word(script: str) -> str:
    return next((word for word in ("journalctl", "dmesg", "coredump") if word in script), "")


def _or_raise(what: bytes | BaseException) -> bytes:
    if isinstance(what, BaseException):
        raise what
    return what


def machine(name: str = "web") -> Any:
    """Return one in place of a VM."""
    return FakeMachine(name)


class FakeNetwork:
    """It records the start time of each requested capture; one called `broken` raises instead."""

    def __init__(self, name: str) -> None:
        self.name = self.label = name
        self.recorder = self
        self.vms: list[FakeMachine] = []

    def write(self, file: IO[bytes], *, since: float) -> None:
        file.write(str(since).encode())
        if self.name == "broken":
            raise OSError("no space left")


class FakeFailedVMs:
    """VMs whose launch failed, and released ones; closed VMs are removed from `up`."""

    def __init__(self, up: list[str]) -> None:
        self.vms: list[FakeMachine] = []
        self.released: list[FakeMachine] = []
        self._up = up

    def close(self) -> None:
        over = [*self.vms, *self.released]
        self.vms, self.released = [], []
        for each in over:
            self._up.remove(each.name)
            if each.refuses_to_go:
                raise EngineError("it does not go")


class FakeLauncher:
    """Launches such machines, except one called `lost`; `up` has the names of the running ones.

    A machine is on the network `default`; one called `broken` is on a network `broken`, and `empty` on none.
    """

    up: ClassVar[list[str]] = []
    is_ours = True

    def __init__(self) -> None:
        self.up.clear()
        self._networks = {name: FakeNetwork(name) for name in ("default", "broken", "empty")}
        self.networks = SimpleNamespace(all=self._networks.values)
        self.failed = FakeFailedVMs(self.up)
        self.damage = SimpleNamespace(found=[])
        self.disks = self
        self.durations: list[object] = []

    def look_for_damage(self) -> list[str]:
        return []

    def launch(self, spec: Spec, _node_id: str) -> FakeMachine:
        made = FakeMachine(spec.name)
        made.spec = spec
        self._networks["broken" if made.name == "broken" else "default"].vms.append(made)
        self.up.append(made.name)
        if made.name == "lost":
            self.failed.vms.append(made)
            raise TimeoutError("it did not boot")
        return made

    def launch_all(self, specs: list[Spec], node_id: str) -> list[FakeMachine]:
        return [self.launch(spec, node_id) for spec in specs]

    def release(self, machine: FakeMachine) -> None:
        self.failed.released.append(machine)

    def facts(self, _machine: FakeMachine) -> dict[str, object]:
        return {"guest": {}}

    def open(self, _machine: FakeMachine) -> None:
        raise EngineError("nothing is left")

    def prefetch(self, *_: object) -> None:
        pass

    def close(self) -> None:
        self.failed.close()
