"""Completion of commands, options and their values."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_virtainers import cli


def test_completion_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    for shell in ("zsh", "fish"):  # click asks bash for its version first
        assert cli.main(["completion", shell]) == 0
        assert "_VIRTAINERS_COMPLETE" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("snap", "snapshot"),
        ("run --arch a", "auto amd64 arm64"),
        ("run --internet ", "on off"),
        ("images pull debian-12", "debian-12 debian-12-cloud debian-12-cloud-arm64"),
        ("images pull no-such-thing", ""),
        ("stop ", ""),  # no engine answers
        ("cp ./", ""),  # files, which bash itself looks for
        ("completion b", "bash"),
    ],
)
def test_completion_in_bash(line: str, offered: str, tmp_path: Path) -> None:
    command = str(Path(sys.executable).with_name("virtainers"))
    script = f"""
        set -u
        compopt() {{ :; }}  # only works while a key is handled
        source <({command} completion bash)
        COMP_WORDS=({command} {line if line[-1] != " " else line + "''"}) COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
        _virtainers_completion {command}
        echo "${{COMPREPLY[*]-}}"
    """
    nowhere = {"VIRTAINER_ENGINE": "docker", "DOCKER_HOST": f"unix://{tmp_path}/none.sock", "HOME": str(tmp_path)}
    run = subprocess.run(
        ["bash", "-c", script], env=os.environ | nowhere, capture_output=True, text=True, timeout=300, check=False
    )
    assert (run.stdout.split("\n")[0], run.stderr) == (offered, "")
