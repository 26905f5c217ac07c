"""The output of commands is shown while they run."""

import pytest

from pytest_virtainers.vm.echo import Echo


def shown(*pieces: bytes) -> list[str]:
    lines: list[str] = []
    echo = Echo("web", lines.append)
    for piece in pieces:
        echo.feed(piece)
    echo.end()
    return lines


def test_whole_lines_are_shown_with_the_machines_name() -> None:
    assert shown(b"o", b"ne\ntwo\r\nthr", b"", b"ee") == ["web: one\n", "web: two\n", "web: three\n"]
    assert shown(b"one\n") == ["web: one\n"]


def test_characters_may_arrive_in_pieces_and_other_bytes_are_shown() -> None:
    assert shown("ä".encode()[:1], "ä".encode()[1:] + b"\xff\n") == ["web: ä\\xff\n"]


def test_without_a_place_to_show_it_nothing_is_kept() -> None:
    echo = Echo("web", None)
    echo.feed(b"no end of line")
    echo.end()


SUITE = """
    from pytest_virtainers.plugin import session

    def test_it(request):
        echo = session._echo(request.config)
        print("captured")
        echo and echo("web: schön\\n")
"""


@pytest.mark.parametrize(
    ("options", "out", "err"),
    [
        ((), False, False),
        (("--virtainer-echo",), False, True),
        (("--virtainer-echo", "--capture=sys"), False, True),
        (("-s",), True, False),
        (("-p", "no:capture"), True, False),
    ],
)
def test_output_is_shown_at_once_even_while_pytest_captures(
    pytester: pytest.Pytester, options: tuple[str, ...], out: bool, err: bool
) -> None:
    pytester.makepyfile(SUITE)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", *options)
    result.assert_outcomes(passed=1)
    assert ("web: schön" in result.stdout.str(), "web: schön" in result.stderr.str()) == (out, err)


def test_shown_output_is_escaped() -> None:
    assert shown(b"\x1b]0;x\x07\xc2\x9b1m\x9b\rover\n") == ["web: \\x1b]0;x\\x07\\x9b1m\\x9b\\rover\n"]
