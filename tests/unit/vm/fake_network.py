"""VMs on a network, whose containers record the commands that they get."""

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from tests.unit.vm.fake_stream import Stream


class FakeContainer:
    def __init__(self) -> None:
        self.ended, self.refuses = False, False
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.streams: list[Stream] = []

    def run(self, command: list[str]) -> tuple[int, bytes]:
        word, mac, state = command
        assert word == "wire"
        if self.refuses and json.loads(state)["delay_ms"]:
            return 1, b"the host's kernel has no sch_netem"
        self.sent.append((mac, json.loads(state)))
        return 0, b""

    def stream(self, command: list[str]) -> Stream:
        assert command[0] == "capture"
        return self.streams.pop(0)


class FakeVM:
    def __init__(self, name: str) -> None:
        self.name, self.container = name, FakeContainer()
        self.left: list[Callable[[], object]] = []
        self.machine = self.on_close = self
        self.network = SimpleNamespace(label="default-isolated")

    def callback(self, function: Callable[..., object], *arguments: object) -> None:
        self.left.append(lambda: function(*arguments))

    @property
    def drops(self) -> dict[str, int]:
        """The losses that were last sent to it."""
        return self.container.sent[-1][1]["drop"]  # type: ignore[no-any-return]


MACS = {name: f"02:42:0a:d5:00:0{number}" for number, name in enumerate("abc", 1)}
EMPTY: dict[str, Any] = {"drop": {}, "rate_kbit": None, "delay_ms": None, "jitter_ms": None}
