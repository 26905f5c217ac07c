import inspect
import re
import traceback
from pathlib import Path

import pytest

import pytest_virtainers
from pytest_virtainers import CommandFailed, CommandTimeout, Result, UnitFailed, VirtainerError, VMGone, WaitTimeout
from pytest_virtainers import errors as module

INTERNAL = {"BadTemplate", "Unclonable"}
ERRORS = {
    name: found
    for name, found in vars(module).items()
    if inspect.isclass(found) and issubclass(found, Exception) and name != "_Message"
}


def result(exit_code: int, stdout: bytes = b"", stderr: bytes = b"") -> Result:
    return Result("make test", exit_code, stdout, stderr, 1.25)


def test_a_failed_command_shows_command_machine_code_and_both_streams() -> None:
    assert str(CommandFailed(result(2, b"out\n", b"err\n"), "web")) == (
        "'make test' on web ended with exit code 2\n--- stdout (4 bytes)\nout\n--- stderr (4 bytes)\nerr"
    )


def test_a_timeout_has_its_duration() -> None:
    assert str(CommandTimeout(result(-1), "web")).startswith("'make test' on web was still running after 1.2 s\n")


def test_the_two_families_are_separate() -> None:
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


EVIL = "\x1b]0;x\x07\x9b1m\u202e\udc9b"
SHOWN = "\\x1b]0;x\\x07\\x9b1m\\u202e\\udc9b"


@pytest.mark.parametrize(
    "error",
    [
        VirtainerError(f"web: {EVIL}"),
        VMGone(f"web: {EVIL}"),
        WaitTimeout(f"web: {EVIL}"),
        UnitFailed(f"web: {EVIL}"),
        CommandFailed(result(1), "web", [f"web: {EVIL}"]),
    ],
    ids=repr,
)
def test_messages_are_escaped(error: Exception) -> None:
    assert f"web: {SHOWN}" in str(error)
    assert f"web: {SHOWN}" in "".join(traceback.format_exception(error))
    assert str(type(error)(str(error)) if not isinstance(error, CommandFailed) else error).count("\\x1b") == 1


def test_shown_streams_of_a_command_are_escaped() -> None:
    evil = EVIL.encode("utf-8", "surrogateescape") + b"\x9d"
    failed = CommandFailed(result(1, b"out" + evil, b"err\r\n" + evil), "web")
    assert f"out{SHOWN[:-6]}\\x9b\\x9d" in str(failed)
    assert f"err\\r\n{SHOWN[:-6]}\\x9b\\x9d" in str(failed)
    assert failed.result.stdout_bytes == b"out" + evil, "unchanged for programs"


def test_the_module_shows_the_tree_of_its_errors() -> None:
    shown, path = dict[str, str](), list[str]()
    for line in (module.__doc__ or "").splitlines():
        if found := re.match(r"    (?P<indent>[│├└─ ]*)(?P<name>[A-Z]\w+)", line):
            depth = len(found["indent"]) // 4
            path[depth:] = [found["name"]]
            shown[found["name"]] = path[depth - 1] if depth else ""
    assert shown.pop("VirtainerError") == shown.pop("AssertionError") == ""
    parents = {
        name: each.__bases__[-1 if issubclass(each, AssertionError) else 0].__name__ for name, each in ERRORS.items()
    }
    assert shown == {name: parent for name, parent in parents.items() if name != "VirtainerError"}


def test_each_public_error_is_exported_and_in_the_reference() -> None:
    public = set(ERRORS) - INTERNAL
    assert public == {name for name in pytest_virtainers.__all__ if name in ERRORS}
    reference = Path(__file__).parents[2].joinpath("docs/reference.md").read_text()
    assert {name for name in public if f"`{name}`" not in reference} == set()


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_each_error_documents_when_it_is_raised(error: type[Exception]) -> None:
    assert re.search(r"^    (Raised|Handled) ", error.__doc__ or "", re.MULTILINE)
