from pytest_virtainers import CommandFailed, CommandTimeout, Result, VirtainerError


def result(exit_code: int, stdout: bytes = b"", stderr: bytes = b"") -> Result:
    return Result("make test", exit_code, stdout, stderr, 1.25)


def test_a_failed_command_shows_command_machine_code_and_both_streams() -> None:
    assert str(CommandFailed(result(2, b"out\n", b"err\n"), "web")) == (
        "'make test' on web ended with exit code 2\n--- stdout (4 bytes)\nout\n--- stderr (4 bytes)\nerr"
    )


def test_a_timeout_says_how_long_it_ran() -> None:
    assert str(CommandTimeout(result(-1), "web")).startswith("'make test' on web was still running after 1.2 s\n")


def test_the_two_families_are_apart() -> None:
    assert issubclass(CommandFailed, AssertionError)
    assert not issubclass(CommandFailed, VirtainerError)
    assert not issubclass(VirtainerError, AssertionError)


def test_huge_streams_are_cut_in_the_middle() -> None:
    shown = result(1, b"a" * 50_000 + b"b" * 50_000).streams()
    assert "aaa\n[… 96000 characters left out …]\nbbb" in shown
    assert len(shown) < 5000


def test_bytes_that_are_not_utf8_survive() -> None:
    assert result(0, b"\xff\xfe").stdout.encode("utf-8", "surrogateescape") == b"\xff\xfe"
    assert result(0)
    assert not result(1)
