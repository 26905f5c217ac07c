"""Captures: how they begin and end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from virtainer import capture, interfaces

MAC = "02:42:0a:01:02:03"
LISTENS = "echo 'tcpdump: listening on eth1, link-type EN10MB' >&2; "


@pytest.fixture
def start(tmp_path: Path) -> list[str]:
    """Return the command, with a program in place of tcpdump that runs its first argument in a shell."""
    tool = tmp_path / "tcpdump"
    tool.write_text('#!/bin/sh\neval "$TCPDUMP"\n')
    tool.chmod(0o755)
    return [sys.executable, "-c", "import sys; from virtainer import capture; sys.exit(capture.record('eth1'))"]


def run(command: list[str], tool: str, folder: Path) -> subprocess.Popen[bytes]:
    runtime = Path(capture.__file__).parents[1]
    env = {"PATH": f"{folder}:{os.environ['PATH']}", "TCPDUMP": tool, "PYTHONPATH": str(runtime)}
    return subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_each_frame_is_written_at_once() -> None:
    assert capture.tcpdump("eth1")[-2:] == ["-w", "-"]
    assert {"-U", "-n", "--immediate-mode"} < set(capture.tcpdump("eth1"))


@pytest.mark.parametrize("arguments", [[], ["eth1"], [MAC, "not host x"], [MAC, MAC]])
def test_wrong_usage_is_reported(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert capture.main(arguments) == 2
    assert capsys.readouterr().err == "usage: capture MAC\n"


def test_a_missing_network_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(interfaces, "_SYS_NET", tmp_path)
    assert capture.main([MAC]) == 1
    assert "capture: this container has no interface" in capsys.readouterr().err


@pytest.mark.parametrize("end", ["stdin", "signal"])
def test_capture_reports_when_it_listens_and_ends_with_stdin(start: list[str], tmp_path: Path, end: str) -> None:
    process = run(start, f"trap 'echo rest; exit 0' TERM; {LISTENS} while :; do sleep 0.1; done", tmp_path)
    assert process.stdin
    assert process.stderr
    assert process.stderr.readline() == b"listening\n"
    if end == "signal":
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    process.stdin.close()
    assert process.wait(60) == 0
    assert process.stdout
    assert process.stdout.read() == b"rest\n", "it had time to write the rest"
    process.stdout.close()
    process.stderr.close()


def test_a_failing_tcpdump_is_reported(start: list[str], tmp_path: Path) -> None:
    process = run(start, "echo 'tcpdump: eth1: no permission' >&2; exit 1", tmp_path)
    assert process.stderr
    assert process.stderr.readline() == b"capture: tcpdump: eth1: no permission\n"
    assert process.wait(60) == 1
    process.communicate()
