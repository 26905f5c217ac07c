"""Keyboard and pointer: the commands to QEMU for chords, text and clicks."""

import json
from typing import Any

import pytest
from typing_extensions import override

from pytest_virtainers.vm import screen
from tests.unit.vm.fake_container import RUNS, Container, machine


class Qemu(Container):
    """Its screen has 1280x800 pixels; it records QMP commands."""

    def __init__(self) -> None:
        super().__init__(RUNS)
        self.asked: list[tuple[str, dict[str, Any]]] = []

    @override
    def reply(self, command: list[str]) -> tuple[int, bytes]:
        if command == ["screenshot"]:
            return 0, b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\x05\0\0\0\x03\x20"
        assert command[0] == "qmp"
        texts = [json.loads(text) for text in command[1:]]
        assert texts, "there must be a command"
        self.asked += [(text["execute"], text["arguments"]) for text in texts]
        return 0, b'{"return": {}}\n' * len(texts)


class Keyboard:
    """The screen of a VM, which records the pressed keys."""

    def __init__(self) -> None:
        self._qemu = Qemu()
        screen = machine(self._qemu).screen
        self.send_keys, self.type = screen.send_keys, screen.type

    @property
    def pressed(self) -> list[list[str]]:
        for command, arguments in self._qemu.asked:
            assert (command, arguments["hold-time"]) == ("send-key", 20)
            assert all(each["type"] == "qcode" for each in arguments["keys"])
        return [[each["data"] for each in arguments["keys"]] for _, arguments in self._qemu.asked]


def test_send_keys_presses_chords_in_order() -> None:
    keyboard = Keyboard()
    keyboard.send_keys("Ctrl-Alt-F2", "enter", "Del", "super-space", "minus")
    assert keyboard.pressed == [["ctrl", "alt", "f2"], ["ret"], ["delete"], ["meta_l", "spc"], ["minus"]]


def test_type_uses_a_us_keyboard() -> None:
    keyboard = Keyboard()
    keyboard.type("aZ1-_~|\n")
    shift = "shift"
    assert keyboard.pressed == [
        *(["a"], [shift, "z"], ["1"], ["minus"], [shift, "minus"]),
        *([shift, "grave_accent"], [shift, "backslash"], ["ret"]),
    ]


def test_each_printable_character_has_its_own_chord() -> None:
    printable = [chr(code) for code in range(0x20, 0x7F)]
    chords = [screen.chord_of(each) for each in printable]
    assert len(set(chords)) == len(printable)
    for chord in chords:
        assert chord.rpartition("-")[0] in {"", "shift"}


@pytest.mark.parametrize(
    ("x", "y", "at"), [(0, 0, (13, 20)), (640, 400, (16396, 16404)), (1279, 799, (32754, 32747))]
)
def test_click_moves_presses_and_releases(x: int, y: int, at: tuple[int, int]) -> None:
    qemu = Qemu()
    machine(qemu).screen.click(x, y, button="right")
    assert {command for command, _ in qemu.asked} == {"input-send-event"}
    move, press, end = [arguments["events"] for _, arguments in qemu.asked]
    assert [(each["data"]["axis"], each["data"]["value"]) for each in move] == [("x", at[0]), ("y", at[1])]
    assert [each["data"] for each in (*press, *end)] == [
        {"button": "right", "down": True},
        {"button": "right", "down": False},
    ]


@pytest.mark.parametrize(("x", "y"), [(1280, 0), (0, 800), (-1, 0)])
def test_click_refuses_points_outside_the_screen(x: int, y: int) -> None:
    with pytest.raises(ValueError, match=f"{x},{y} is not on the screen of vm, which has 1280x800 pixels"):
        machine(Qemu()).screen.click(x, y)


def test_empty_text_presses_nothing() -> None:
    keyboard = Keyboard()
    keyboard.type("")
    assert keyboard.pressed == []


@pytest.mark.parametrize("text", ["ä", "\x07", "٣"])
def test_type_refuses_characters_without_a_key(text: str) -> None:
    keyboard = Keyboard()
    with pytest.raises(ValueError, match="a US keyboard has no key for"):
        keyboard.type(f"a{text}")
    assert keyboard.pressed == [], "nothing of it is typed"


@pytest.mark.parametrize("text", ["a" * 1000, "A" * 1000, "a" * 33])
def test_long_text_is_typed_in_parts_that_fit_into_qemus_queue(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    keyboard = Keyboard()
    parts: list[int] = []
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        parts.append(sum(map(len, keyboard.pressed)) - sum(parts))

    monkeypatch.setattr("time.sleep", sleep)
    keyboard.type(text)
    assert len(keyboard.pressed) == len(text)
    assert sum(parts) == sum(map(len, keyboard.pressed))
    for keys, seconds in zip(parts, slept, strict=True):
        assert 6 * keys < 1024, "steps in QEMU's queue"
        assert seconds > 0.04 * keys, "its time for them"
