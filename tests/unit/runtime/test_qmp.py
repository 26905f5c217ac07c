"""The QMP client and the command `qmp`, with a socket in place of QEMU."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from virtainer import qmp

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REPLIES: dict[str, dict[str, Any]] = {
    "qmp_capabilities": {"return": {}},
    "query-status": {"return": {"status": "running"}},
    "nonsense": {"error": {"class": "CommandNotFound", "desc": "The command nonsense has not been found"}},
}


@contextlib.contextmanager
def qemu(path: Path) -> Iterator[None]:
    """Answer one connection as QEMU does: a greeting, then an event in front of every reply."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()

    def serve() -> None:
        connection, _ = server.accept()
        with connection, connection.makefile("rb") as lines:
            connection.sendall(b'{"QMP": {"version": {}}}\r\n')
            for line in lines:
                reply = REPLIES[json.loads(line)["execute"]]
                connection.sendall(b'{"event": "RTC_CHANGE"}\r\n' + json.dumps(reply).encode() + b"\r\n")

    thread = threading.Thread(target=serve)
    thread.start()
    yield
    thread.join(5)
    server.close()


def test_replies_are_printed_one_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with qemu(tmp_path / "qmp.sock"):
        code = qmp.main(['{"execute": "query-status"}'] * 2, tmp_path / "qmp.sock")
    assert code == 0
    assert capsys.readouterr().out == '{"return": {"status": "running"}}\n' * 2


def test_an_error_is_printed_and_is_exit_code_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with qemu(tmp_path / "qmp.sock"):
        code = qmp.main(['{"execute": "nonsense"}'], tmp_path / "qmp.sock")
    assert code == 1
    assert json.loads(capsys.readouterr().out) == REPLIES["nonsense"]


@pytest.mark.parametrize("arguments", [[], ["query-status"], ['"query-status"']])
def test_invalid_commands_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert qmp.main(arguments) == 2
    assert capsys.readouterr().err.startswith(("qmp: expected commands such as", "qmp: not JSON"))


def test_without_qemu_the_socket_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert qmp.main(['{"execute": "query-status"}'], tmp_path / "qmp.sock") == 2
    assert f"qmp: no answer on {tmp_path}/qmp.sock" in capsys.readouterr().err


def test_a_silent_qemu_times_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(qmp, "_ANSWER_SECONDS", 0.05)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "qmp.sock"))
        server.listen()
        assert qmp.main(['{"execute": "query-status"}'], tmp_path / "qmp.sock") == 2
    assert "qmp.sock: timed out" in capsys.readouterr().err


def test_messages_in_pieces_are_put_together() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        monitor = qmp.Monitor(ours)
        assert json.loads(theirs.recv(100)) == {"execute": "qmp_capabilities"}
        theirs.sendall(b'{"event": "STOP"}\r\n{"eve')
        assert monitor.receive() == [{"event": "STOP"}]
        theirs.sendall(b'nt": "RESUME"}\r\n')
        assert monitor.receive() == [{"event": "RESUME"}]
        theirs.shutdown(socket.SHUT_RDWR)
        with pytest.raises(EOFError):
            monitor.receive()


def test_a_qemu_that_ended_before_is_reported_by_the_next_read() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours:
        monitor = qmp.Monitor(ours)
        with pytest.raises((EOFError, ConnectionError)):
            monitor.receive()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["event", "data", "error", "id", "x"]), inner),
)


@given(st.lists(st.binary() | JSON.map(lambda value: json.dumps(value).encode()), max_size=8), st.integers(1, 64))
def test_any_bytes_of_qemu_yield_only_messages(lines: list[bytes], piece: int) -> None:
    ours, theirs = socket.socketpair()
    seen: list[dict[str, Any]] = []
    with ours, theirs:
        monitor = qmp.Monitor(ours)
        sent = b"\n".join([*lines, b""])
        for start in range(0, len(sent), piece):
            theirs.sendall(sent[start : start + piece])
            seen += monitor.receive()
    for message in seen:
        assert isinstance(message.get("data", {}), dict)
        assert "error" not in message or isinstance(message["error"]["desc"], str)


@pytest.mark.parametrize("nonsense", [b"[" * 100_000, b"no JSON", b"[1]", b'{"data": 1}', b'{"error": {}, "id": 1}'])
def test_a_reply_after_noise_is_found(nonsense: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(nonsense + b'\n{"return": {"status": "running"}, "id": 1}\n')
        assert qmp.Monitor(ours).ask("query-status") == {"status": "running"}


def test_a_line_without_end_is_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qmp, "_LONGEST_LINE", 1000)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"x" * 2000)
        with pytest.raises(EOFError, match="a line of more than 1000 bytes"):
            qmp.Monitor(ours).receive()
