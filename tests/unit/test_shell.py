import subprocess

import pytest

from pytest_virtainers.handle import shell


def run(line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)


def test_text_goes_to_the_shell_as_it_is() -> None:
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
