"""Keys by their names: what is pressed for a text, and for chords; cards that do not come to be."""

from types import SimpleNamespace
from typing import Any

import pytest

from pytest_virtainers.engine.facts import Addresses
from pytest_virtainers.errors import VirtainerError
from pytest_virtainers.vm import devices
from pytest_virtainers.vm.devices import Devices


class Keyboard(Devices):
    """The part of a machine that has to do with keys: it notes what QEMU is asked."""

    def __init__(self) -> None:
        self.pressed: list[list[str]] = []
        self._halted = ""

    def _ask_qemu(self, *commands: tuple[str, dict[str, Any]]) -> list[Any]:
        assert commands, "QEMU has to be asked something"
        for command, arguments in commands:
            assert (command, arguments["hold-time"]) == ("send-key", 20)
            assert all(each["type"] == "qcode" for each in arguments["keys"])
            self.pressed.append([each["data"] for each in arguments["keys"]])
        return []


def test_chords_are_pressed_one_after_another() -> None:
    keyboard = Keyboard()
    keyboard.send_keys("Ctrl-Alt-F2", "enter", "Del", "super-space", "minus")
    assert keyboard.pressed == [["ctrl", "alt", "f2"], ["ret"], ["delete"], ["meta_l", "spc"], ["minus"]]


def test_text_is_typed_as_on_a_us_keyboard() -> None:
    keyboard = Keyboard()
    keyboard.type("aZ1-_~|\n")
    shift = "shift"
    assert keyboard.pressed == [
        *(["a"], [shift, "z"], ["1"], ["minus"], [shift, "minus"]),
        *([shift, "grave_accent"], [shift, "backslash"], ["ret"]),
    ]


def test_every_printable_character_has_a_chord_of_its_own() -> None:
    printable = [chr(code) for code in range(0x20, 0x7F)]
    chords = [devices._chord(each) for each in printable]
    assert len(set(chords)) == len(printable)
    for chord in chords:
        assert chord.rpartition("-")[0] in {"", "shift"}


class Tablet(Devices):
    """The part of a machine that has to do with its pointer; its screen has 1280x800 pixels."""

    name = "desk"

    def __init__(self) -> None:
        self.felt: list[list[dict[str, Any]]] = []
        self._halted = ""

    def _picture(self) -> bytes:
        return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\x05\0\0\0\x03\x20"

    def _ask_qemu(self, *commands: tuple[str, dict[str, Any]]) -> list[Any]:
        assert {command for command, _ in commands} == {"input-send-event"}
        self.felt += [arguments["events"] for _, arguments in commands]
        return []


@pytest.mark.parametrize(
    ("x", "y", "at"), [(0, 0, (13, 20)), (640, 400, (16396, 16404)), (1279, 799, (32754, 32747))]
)
def test_a_click_is_a_move_and_a_press_and_its_end(x: int, y: int, at: tuple[int, int]) -> None:
    tablet = Tablet()
    tablet.click(x, y, button="right")
    move, press, end = tablet.felt
    assert [(each["data"]["axis"], each["data"]["value"]) for each in move] == [("x", at[0]), ("y", at[1])]
    assert [each["data"] for each in (*press, *end)] == [
        {"button": "right", "down": True},
        {"button": "right", "down": False},
    ]


@pytest.mark.parametrize(("x", "y"), [(1280, 0), (0, 800), (-1, 0)])
def test_beside_the_screen_is_nothing_to_click_on(x: int, y: int) -> None:
    with pytest.raises(ValueError, match=f"{x},{y} is not on the screen of desk, which has 1280x800 pixels"):
        Tablet().click(x, y)


def test_nothing_to_type_is_nothing_to_press() -> None:
    keyboard = Keyboard()
    keyboard.type("")
    assert keyboard.pressed == []


@pytest.mark.parametrize("text", ["ä", "\x07", "٣"])
def test_what_such_a_keyboard_has_no_key_for_is_refused(text: str) -> None:
    keyboard = Keyboard()
    with pytest.raises(ValueError, match="a US keyboard has no key for"):
        keyboard.type(f"a{text}")
    assert keyboard.pressed == [], "nothing of it is typed"


@pytest.mark.parametrize("text", ["a" * 1000, "A" * 1000, "a" * 33])
def test_a_long_text_is_typed_in_parts_for_which_qemu_has_room(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
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
        assert 6 * keys < 1024, "steps that QEMU notes"
        assert seconds > 0.04 * keys, "its time for them"


class Plugs(Devices):
    """The part of a machine that has to do with cards: it notes what its container is told; its guest shows none."""

    def __init__(self) -> None:
        self.name = "web"
        self.told: list[str] = []
        self._nics = []
        self.spec: Any = SimpleNamespace(guest_hostname="web")
        self.container: Any = SimpleNamespace(connect=self._plugged, disconnect=self._unplugged)

    def _plugged(self, _port: object) -> Addresses:
        self.told.append("connect")
        return Addresses("02:42:0a:d5:00:80", "10.1.0.128")

    def _unplugged(self, network: str) -> None:
        self.told.append(f"disconnect {network}")

    def _control(self, *command: str, **_patience: object) -> bytes:
        self.told.append(" ".join(command))
        return b'{"mac": "02:42:0a:d5:00:80", "addresses": ["10.1.0.128/24"], "mtu": 1500}'

    def _as_root(self, *_script: object, **_timeout: object) -> bytes:
        raise VirtainerError("the guest does not show the network card")


def test_a_card_that_the_guest_does_not_show_is_pulled_out_again() -> None:
    vm, network = Plugs(), NetworkOfOne()
    with pytest.raises(VirtainerError, match="the guest does not show the network card"):
        vm.add_nic(network)  # type: ignore[arg-type]
    assert vm.told == [
        "connect",
        "device join nic1 02:42:0a:d5:00:80",
        "device remove nic1",
        "disconnect engine-lab",
    ]
    assert (network.there, vm.nics) == ([], {})
    with pytest.raises(VirtainerError, match="the guest does not show the network card"):
        vm.add_nic()
    assert vm.told[-2:] == ["device add-nic nic2 52:54:00:76:70:02", "device remove nic2"]


class NetworkOfOne:
    engine_name, has_host, is_wire = "engine-lab", True, False

    def __init__(self) -> None:
        self.there: list[object] = []

    def port(self, _name: str, _ip: object) -> None:
        pass

    def join(self, vm: object, _mac: str) -> None:
        self.there.append(vm)

    def leave(self, vm: object) -> None:
        self.there.remove(vm)
