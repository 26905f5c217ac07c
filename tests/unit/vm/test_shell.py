import shutil
import subprocess
from collections.abc import Iterator

import pytest

from pytest_virtainers.vm import shell


def run(line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)


def test_text_is_passed_to_the_shell_unchanged() -> None:
    assert shell.line("a | b && c") == "a | b && c"


@pytest.mark.parametrize("word", ["", "a b", "'", '"', "$HOME", "`id`", "a\nb", "-n", "ä", ";reboot"])
def test_words_arrive_exactly(word: str) -> None:
    assert run(shell.line(["printf", "%s.", "x", word])).stdout == f"x.{word}."


def test_environment_and_folder_are_quoted_and_reach_the_command() -> None:
    line = shell.line('printf "%s|" "$A"; pwd', env={"A": "it's $HOME"}, cwd="/usr/lib")
    assert run(line).stdout == "it's $HOME|/usr/lib\n"


def test_a_folder_that_cannot_be_entered_stops_the_command() -> None:
    finished = run(shell.line("echo ran; true", cwd="/no/such folder"))
    assert (finished.stdout, finished.returncode != 0) == ("", True)
    assert "no/such folder" in finished.stderr


def test_sudo_wraps_the_whole_script() -> None:
    line = shell.line("echo $A; id", sudo=True, env={"A": "1"})
    assert line == "sudo -n -- sh -c 'export A=1\necho $A; id'"


@pytest.mark.parametrize("name", ["", "1A", "A-B", "A;reboot", "A B"])
def test_variable_names_are_checked(name: str) -> None:
    with pytest.raises(ValueError, match="cannot name an environment variable"):
        shell.line("true", env={name: "x"})


@pytest.mark.parametrize("command", ["", "  \n", []])
def test_an_empty_command_is_refused(command: str | list[str]) -> None:
    with pytest.raises(ValueError, match="the command is empty"):
        shell.line(command)


def test_another_user_runs_it_by_sudo() -> None:
    assert shell.line("id", user="nobody") == "sudo -n -u nobody -- sh -c id"
    assert shell.line(["id", "-un"], user="nobody", sudo=True) == "sudo -n -u nobody -- sh -c 'exec id -un'"


def test_words_replace_the_shell_so_that_signals_reach_them() -> None:
    assert shell.line(["sleep", "60"], env={"A": "1"}) == "export A=1\nexec sleep 60"


def after_leader(*pieces: bytes) -> tuple[int | None, bytes]:
    """Return the session that a leader has found in standard error, and the rest of that."""
    passed = bytearray()
    leader = shell.Leader()
    leader.pass_on = passed.extend
    for piece in pieces:
        leader(piece)
    leader.end()
    return leader.session, bytes(passed)


def test_the_shell_reports_its_session_first() -> None:
    finished = run(shell.with_leader("echo said >&2; echo $$"))
    assert after_leader(finished.stderr.encode()) == (int(finished.stdout), b"said\n")


@pytest.mark.parametrize("size", [1, 3, 100])
def test_the_number_may_arrive_in_pieces(size: int) -> None:
    said = b"1234567890\nerror: 42\n"
    assert after_leader(*(said[at : at + size] for at in range(0, len(said), size))) == (1234567890, b"error: 42\n")


@pytest.mark.parametrize(
    "said", [b"fish: no\n", b"This account is not available.", b"no", b"", b"\n", b"12345678901"]
)
def test_other_output_of_the_shell_is_kept(said: bytes) -> None:
    assert after_leader(*(said[at : at + 1] for at in range(len(said)))) == (None, said)


@pytest.fixture
def session() -> Iterator[subprocess.Popen[bytes]]:
    """Run a shell that leads a session and waits for its command."""
    if shutil.which("pgrep") is None:
        pytest.skip("pgrep (procps) is needed")
    script = "sh -c 'trap \"exit 7\" USR1; echo ready; while :; do sleep 0.02; done'; exit $?"
    process = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout
    assert process.stdout.readline() == b"ready\n"
    yield process
    subprocess.run(["sh", "-c", shell.KILL_SESSION, "sh", str(process.pid)], check=False)
    process.wait(60)
    process.stdout.close()


def test_a_signal_is_sent_to_what_the_shell_runs(session: subprocess.Popen[bytes]) -> None:
    subprocess.run(["sh", "-c", shell.SIGNAL_SESSION, "sh", str(session.pid), "USR1"], check=True)
    assert session.wait(60) == 7, "the shell itself was not signalled"


def test_a_session_that_has_just_ended_needs_no_signal(session: subprocess.Popen[bytes]) -> None:
    subprocess.run(["sh", "-c", shell.KILL_SESSION, "sh", str(session.pid)], check=True)
    session.wait(60)
    subprocess.run(["sh", "-c", shell.SIGNAL_SESSION, "sh", str(session.pid), "TERM"], check=True)


def test_an_unknown_signal_fails(session: subprocess.Popen[bytes]) -> None:
    wrong = subprocess.run(
        ["sh", "-c", shell.SIGNAL_SESSION, "sh", str(session.pid), "BOGUS"], capture_output=True, check=False
    )
    assert wrong.returncode != 0
    assert session.poll() is None
