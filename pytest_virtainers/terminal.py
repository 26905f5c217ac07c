"""Text of strangers on a person's terminal: guests, images and files may send it escape sequences.

They set titles, write to the clipboard, move the cursor over other lines or turn text around; some terminals have
answered them with keys. So whatever shows a foreign text makes it `printable` first. What others compute with, such
as a command's output or a file, stays as it is.

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
# Of 8-bit controls, U+0080 to U+009F are characters, and \udc80 to \udc9f bytes that are no UTF-8. The latter may
# be letters of another encoding, so that only a string with an end is one. A string ends with its line at the latest.
_PARAMETERS = r"[0-?]{0,256}[ -/]{0,16}"
_CONTENT = rf"[^\x00-\x08\x0a-\x1f\x80-\x9f\udc80-\udc9f]{{0,{_LONGEST}}}"
_STRING = rf"(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f]){_CONTENT}"
_BYTES = rf"[\udc90\udc98\udc9d-\udc9f]{_CONTENT}"
_SEQUENCE = re.compile(
    rf"(?:\x1b\[|[\x9b\udc9b]){_PARAMETERS}[@-~]"  # CSI
    rf"|{_STRING}(?:[\x07\x9c\udc9c]|\x1b\\)?"  # OSC, DCS, SOS, PM, APC
    rf"|{_BYTES}(?:[\x07\x9c\udc9c]|\x1b\\)"
    r"|\x1b[ -/]{0,16}[0-~]"  # all others
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f]"  # controls
)
_UNFINISHED = re.compile(rf"(?:(?:\x1b\[|[\x9b\udc9b]){_PARAMETERS}|(?:{_STRING}|{_BYTES})\x1b?|\x1b[ -/]{{0,16}})\Z")
_ANY = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_BYTE = re.compile("[\ud800-\udfff]")


class Plain:
    """Takes the sequences and controls out of what is written to a terminal; it comes in pieces."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._rest = ""

    def feed(self, data: bytes) -> str:
        """Take the next piece; return the text up to a sequence or character whose end has not come yet."""
        text = (self._rest + self._decoder.decode(data)).replace("\r\n", "\n")
        if not _ANY.search(text):  # as of most text: that is ten times as fast
            self._rest = ""
            return text
        unfinished = _UNFINISHED.search(text, max(0, len(text) - _LONGEST - 3))
        end = unfinished.start() if unfinished else len(text)
        self._rest = text[end:]
        return _BYTE.sub("\ufffd", _SEQUENCE.sub("", text[:end]))


def printable(text: str) -> str:
    r"""Return a text with all that may control a terminal written as Python does (`\x1b`); lines and tabs stay."""
    return _UNSAFE.sub(_escaped, text)


def one_line(text: str) -> str:
    r"""Return a text as `printable` does, with its ends of lines and tabs escaped, too."""
    return _UNSAFE_IN_A_LINE.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")
