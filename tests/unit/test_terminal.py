"""Text from guests and files on a terminal."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pytest_virtainers.terminal import Plain, one_line, printable

STARTS = [b"\x1b[", b"\x1b]", b"\x1bP", b"\x1b", b"\x9b", b"\xc2\x9b", b"\x9d", b"\xc2\x9d"]
ENDS = [b"\x1b\\", b"\\", b"\x07", b"\x9c", b"\xc2\x9c", b"\n", b"\r\n", b"m"]
WORDS = [b"0", b";", b" ", b"0" * 255, b"a" * 4095, "ä".encode(), b"\xe4", "\u202e".encode()]
BYTES = st.sampled_from([*STARTS, *ENDS, *WORDS])


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\tütf-8 日本\u3000\u00a0👩\u200d💻\n", "plain\tütf-8 日本\u3000\u00a0👩\u200d💻\n"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x9b31m\x90\x9d\x85", "\\x9b31m\\x90\\x9d\\x85"),
        ("over\rwritten\b\0\x7f", "over\\rwritten\\x08\\x00\\x7f"),
        ("\u202egnp.exe\u2066\u200f", "\\u202egnp.exe\\u2066\\u200f"),
        ("a\u2028b\u2029c", "a\\u2028b\\u2029c"),
        ("\udc9b\ud800", "\\udc9b\\ud800"),
    ],
)
def test_control_characters_are_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown, "escaping is idempotent"
    printable(text).encode()


def test_one_line_escapes_newlines_and_tabs() -> None:
    assert one_line("a\nb\tc\x1b") == "a\\nb\\tc\\x1b"


@given(st.text())
def test_printable_text_has_no_control_characters(text: str) -> None:
    shown = printable(text)
    assert not any((ord(each) < 0x20 and each not in "\n\t") or 0x7F <= ord(each) < 0xA0 for each in shown)
    shown.encode()


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\x1b[1;31mred\x1b[0m\r\n", "red\n"),
        (b"a\x1b]0;title\x07b\x1b]52;c;aGk=\x1b\\c", "abc"),
        (b"a\x1bP1$r0m\x1b\\b\x1b_apc\x1b\\c\x1b^pm\x1b\\d\x1bXsos\x1b\\e", "abcde"),
        (b"a\xc2\x9b31mb\xc2\x9d0;x\xc2\x9cc\xc2\x90q\xc2\x9cd", "abcd"),
        (b"a\x9b31mb\x9d0;x\x9cc\x90q\x07d", "abcd"),
        (b"\x1b(Ba\x1b7\x1bcb\x1b#8", "ab"),
        (b"a\x1b]0;no end\nb", "a\nb"),
        (b"a\x1b]0;no end\x1b[31mb", "ab"),
        (b"\xe4\xf6\x84 \x90cole\n", "\ufffd\ufffd\ufffd \ufffdcole\n"),
        (b"bell\x07 back\x08 \x7f\0tab\t", "bell back tab\t"),
        ("grüße 日本".encode(), "grüße 日本"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_sequences_are_removed_completely(data: bytes, text: str, size: int) -> None:
    plain = Plain()
    shown = "".join(plain.feed(data[at : at + size]) for at in range(0, len(data), size))
    assert shown == text


@settings(deadline=None)
@given(st.lists(BYTES, max_size=30), st.lists(st.sampled_from([1, 2, 5, 255, 4096, 9000]), min_size=1))
@example([b"\xc2\x9d", b"a" * 4095, b"0", b"\x07"], [1])
def test_the_result_does_not_depend_on_the_pieces(pieces: list[bytes], sizes: list[int]) -> None:
    data, one, at, shown = b"".join(pieces), Plain(), 0, ""
    while at < len(data):
        size = sizes[at % len(sizes)]
        shown += one.feed(data[at : at + size])
        at += size
    assert shown == Plain().feed(data)
    assert not any((ord(each) < 0x20 and each not in "\n\t") or 0x7F <= ord(each) < 0xA0 for each in shown)


def test_an_unterminated_string_hides_at_most_4_kib() -> None:
    plain = Plain()
    shown = "".join(plain.feed(b"\x1b]" + b"x" * 1000) if at == 0 else plain.feed(b"x" * 1000) for at in range(10))
    assert len(shown) == 10_000 - 4096
