"""Recorded output: bounded, with positions that stay valid."""

from __future__ import annotations

import random
import threading

import pytest

from pytest_virtainers.engine.output import HEAD, TAIL, Output, Record
from tests.unit.memory import allocated


def mark(count: int) -> str:
    return f"<{count}>"


def test_short_output_is_kept_whole() -> None:
    record = Record("", head=4, tail=6)
    for piece in ("abc", "", "defg", "hij"):
        record.append(piece)
    assert (record.whole(mark), record.size, record.missing) == ("abcdefghij", 10, 0)
    assert record.since(8) == (8, "ij")
    assert record.since(0) == (0, "abcdefghij")
    assert record.since(99) == (99, "")


def test_long_output_keeps_beginning_and_end_and_counts_the_gap() -> None:
    record = Record("", head=4, tail=6)
    for letter in "abcdefghijklmnopqrstuvwxyz" * 2000:
        record.append(letter)
    whole = record.whole(mark)
    assert whole.startswith("abcd<")
    assert whole.endswith("uvwxyz")
    head, tail = record.parts()
    assert (head[1], len(head[1]) + len(tail[1]) + record.missing) == ("abcd", record.size)
    assert len(tail[1]) < 6 + 4096
    assert record.since(record.size - 3) == (record.size - 3, "xyz")
    assert record.since(2)[0] > 4, "where nothing is missing"


@pytest.mark.parametrize("seed", range(20))
def test_positions_count_everything_that_arrived(seed: int) -> None:
    dice = random.Random(seed)  # noqa: S311
    said, record = "", Record("", head=5000, tail=20000)
    for _ in range(dice.randrange(60)):
        piece = dice.choice("abc") * dice.choice([0, 1, 3, 100, 4096, 9000])
        said += piece
        record.append(piece)
        at = dice.randrange(len(said) + 1)
        parts = list(record.parts(at))
        assert all(said[start : start + len(part)] == part for start, part in parts)
        assert parts[-1][0] + len(parts[-1][1]) == len(said)
        assert record.since(at)[0] == at or record.missing
    assert record.missing in {0, len(said) - len(record.whole(mark)) + len(mark(record.missing))}


def test_memory_does_not_grow_with_output() -> None:
    output, piece = Output(), b"x" * 65536
    for _ in range(3 * (HEAD + TAIL) // len(piece)):
        output.append(piece)
    assert output.size == 3 * (HEAD + TAIL)
    assert HEAD + TAIL <= len(bytes(output)) < HEAD + TAIL + 2 * len(piece)
    missing = output.size - HEAD - TAIL
    assert f"\n[… {missing} bytes not kept …]\n".encode() in bytes(output)
    assert output.last(10) == b"x" * 10


def test_small_pieces_are_joined() -> None:
    record = Record(b"")

    def append() -> None:
        for _ in range(100_000):
            record.append(b"x")

    assert allocated(append) < 200_000, "a reference to each piece would take 800 000 bytes"


def test_a_reader_gets_old_and_new_output_with_positions() -> None:
    output, seen = Output(b"be"), list[tuple[int, bytes]]()
    output.append(b"fore")
    output.follow(lambda position, piece: seen.append((position, piece)))
    output.append(b", after")
    assert seen == [(0, b"before"), (6, b", after")]


def test_a_late_reader_sees_gaps() -> None:
    output, seen = Output(), list[tuple[int, bytes]]()
    for _ in range(2 * (HEAD + TAIL) // 65536):
        output.append(b"x" * 65536)
    output.follow(lambda position, piece: seen.append((position, piece)))
    (first, head), (second, tail) = seen
    assert (first, second + len(tail)) == (0, output.size)
    assert second > len(head)


def test_waiting_ends_with_the_condition_or_the_stream() -> None:
    output = Output()
    threading.Timer(0.05, output.append, [b"x"]).start()
    assert output.wait_for(lambda: output.size > 0, 30)
    threading.Timer(0.05, output.end).start()
    assert not output.wait_for(lambda: output.size > 1, 30)
    assert output.ended
