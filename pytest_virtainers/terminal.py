"""Remove or escape terminal control sequences in the output of guests, and in images and files from elsewhere.

Such sequences set titles, write to the clipboard, move the cursor over other lines or reverse text; some terminals
have answered them with key presses. So text from elsewhere is made `printable` before it is shown. Data for programs,
such as a command's output or a file, is not changed.

Sequences: https://ecma-international.org/publications-and-standards/standards/ecma-48/ (5.4 CSI, 5.6 strings).
"""

from __future__ import annotations

import codecs
import re

# C0 and C1 controls, DEL, line and paragraph separators, the controls of writing direction, lone surrogates.
_CONTROL = r"\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ud800-\udfff"
_UNSAFE = re.compile(f"[{_CONTROL}]")
_UNSAFE_IN_A_LINE = re.compile(rf"[\t\n{_CONTROL}]")

_LONGEST = 4096
# Among 8-bit controls, U+0080 to U+009F are characters, and \udc80 to \udc9f are bytes outside UTF-8. These may be
# letters of another encoding, so they start a string only if it has an end. A string ends with its line at most.
_PARAMETERS = r"[0-?]{0,256}[ -/]{0,16}"
_CONTENT = rf"[^\x00-\x08\x0a-\x1f\x80-\x9f\udc80-\udc9f]{{0,{_LONGEST}}}"
_STRING = rf"(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f]){_CONTENT}"
_BYTES = rf"[\udc90\udc98\udc9d-\udc9f]{_CONTENT}"
_SEQUENCE = re.compile(
    rf"(?:\x1b\[|[\x9b\udc9b]){_PARAMETERS}[@-~]"  # CSI
    rf"|{_STRING}(?:[\x07\x9c\udc9c]|\x1b\\)?"  # OSC, DCS, SOS, PM, APC
    rf"|{_BYTES}(?:[\x07\x9c\udc9c]|\x1b\\)"
    r"|\x1b[ -/]{0,16}[0-~]"  # other escape sequences
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f]"  # controls
)
_UNFINISHED = re.compile(rf"(?:(?:\x1b\[|[\x9b\udc9b]){_PARAMETERS}|(?:{_STRING}|{_BYTES})\x1b?|\x1b[ -/]{{0,16}})\Z")
_ANY = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_BYTE = re.compile("[\ud800-\udfff]")


class Plain:
    """Incremental decoder that removes escape sequences and control characters from terminal output."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._rest = ""

    def feed(self, data: bytes) -> str:
        """Decode the next piece; return the text up to an incomplete sequence or character at its end."""
        text = (self._rest + self._decoder.decode(data)).replace("\r\n", "\n")
        if not _ANY.search(text):  # ten times as fast, and true for most text
            self._rest = ""
            return text
        unfinished = _UNFINISHED.search(text, max(0, len(text) - _LONGEST - 3))
        end = unfinished.start() if unfinished else len(text)
        self._rest = text[end:]
        return _BYTE.sub("\ufffd", _SEQUENCE.sub("", text[:end]))


def printable(text: str) -> str:
    r"""Return the text with control characters escaped as in Python (`\x1b`), except newlines and tabs."""
    return _UNSAFE.sub(_escaped, text)


def one_line(text: str) -> str:
    r"""Return the text with control characters escaped as in Python, including newlines and tabs."""
    return _UNSAFE_IN_A_LINE.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")
