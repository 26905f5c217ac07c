"""Limits of a guest's output in memory."""

import pytest

from pytest_virtainers.errors import OutputTooLarge
from pytest_virtainers.vm import limited
from pytest_virtainers.vm.limited import Collected, Limited, TooMuch, outputs


def test_a_stream_is_kept_whole_up_to_its_limit() -> None:
    stream = Collected("standard output of 'yes' on web", 1, "Write to a file instead.")
    for _ in range(16):
        stream.take(bytes(64 * 1024))
    assert len(stream) == 1024 * 1024
    message = "^standard output of 'yes' on web has more than 1 MiB. Write to a file instead.$"
    with pytest.raises(OutputTooLarge, match=message):
        stream.take(b"x")
    assert len(stream) == 1024 * 1024


def test_output_that_is_cut_is_kept_up_to_its_limit() -> None:
    output = Limited(10)
    output(b"123456")
    with pytest.raises(TooMuch):
        output(b"7890ab")
    assert output.data == b"1234567890"


def test_a_long_command_is_shortened_in_the_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limited, "COMMAND_MIB", 1)
    stdout, stderr = outputs("yes " + "y" * 1000, "web")
    for stream, name in ((stdout, "output"), (stderr, "error")):
        with pytest.raises(
            OutputTooLarge, match=rf"^standard {name} of 'yes yyy.*' on web has more than 1 MiB\. Let it"
        ):
            stream.take(bytes(1024 * 1024 + 1))
