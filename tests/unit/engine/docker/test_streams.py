import os
import socket
import struct
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from pytest_virtainers.engine.docker.engine import DockerEngine
from pytest_virtainers.engine.docker.streams import Demultiplexer, ExecStream, HijackedSocket
from tests.unit.fake_engine import credentials, echo, serving


def frame(stream: int, payload: bytes) -> bytes:
    return struct.pack(">BxxxL", stream, len(payload)) + payload


def test_frames_survive_any_cut() -> None:
    data = frame(1, b"hello") + frame(2, b"") + frame(2, b"x" * 300) + frame(1, b"end")
    for size in (1, 3, 8, 13, len(data)):
        frames = Demultiplexer()
        got = [each for at in range(0, len(data), size) for each in frames.feed(data[at : at + size])]
        assert got == [(1, b"hello"), (2, b""), (2, b"x" * 300), (1, b"end")]


def test_an_exec_stream_reads_stdout_only_and_to_its_end() -> None:
    ours, theirs = socket.socketpair()
    stream = ExecStream(HijackedSocket(ours))
    theirs.sendall(frame(2, b"warning") + frame(1, b"SSH-2.0-x\r\n"))
    assert stream.recv(4) == b"SSH-"
    assert stream.recv(100) == b"2.0-x\r\n"
    stream.send(b"hi")
    assert theirs.recv(10) == b"hi"
    theirs.close()
    assert stream.recv(10) == b""
    stream.close()


def test_input_can_be_closed_before_output_is_read() -> None:
    ours, theirs = socket.socketpair()
    stream = ExecStream(HijackedSocket(ours))
    stream.send(b"keys")
    stream.close_input()
    assert [theirs.recv(10), theirs.recv(10)] == [b"keys", b""]
    theirs.sendall(frame(1, b"done"))
    assert stream.recv(10) == b"done"
    theirs.close()
    stream.close_input()  # the other end is closed
    stream.close()


def test_a_forked_child_does_not_hold_the_lease() -> None:
    ours, theirs = socket.socketpair()
    lease = HijackedSocket(ours)
    ready, go = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.write(ready[1], b"1")
        os.read(go[0], 1)  # stay alive while the parent closes the lease
        os._exit(0)
    os.read(ready[0], 1)
    lease.abandon()  # closes without shutdown: what SIGKILL does to the parent
    theirs.settimeout(60)
    assert theirs.recv(1) == b"", "the child still held the other end"
    os.write(go[1], b"1")
    os.waitpid(child, 0)
    theirs.close()
    for end in (*ready, *go):
        os.close(end)


def test_abandon_closes_a_tls_stream(tmp_path: Path) -> None:
    ended = threading.Event()

    def watched(request: BaseHTTPRequestHandler) -> None:
        echo(request)
        request.rfile.read()
        ended.set()

    environ = {"DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(tmp_path)}
    with serving({"POST /exec/e/start": watched}, tls=credentials(tmp_path)) as server:
        engine = DockerEngine(server.url, environ)
        lease = HijackedSocket(engine.api.exec_start("e", socket=True))
        lease.send(b"hi")
        assert lease.recv() == frame(1, b"HI")
        lease.abandon()
        assert ended.wait(60), "the connection is still open"
        engine.close()


def test_a_command_without_output_raises_with_its_stderr() -> None:
    complaint = frame(2, b"relay: no ") + frame(2, b"such port\n")
    for said, message in ((complaint, "relay: no such port"), (b"", "the command ended without output")):
        ours, theirs = socket.socketpair()
        theirs.sendall(said)
        theirs.close()
        stream = ExecStream(HijackedSocket(ours))
        with pytest.raises(ConnectionError, match=f"^{message}"):
            stream.wait_for_output()
        stream.close()


def test_output_is_still_there_after_waiting_for_it() -> None:
    ours, theirs = socket.socketpair()
    theirs.sendall(frame(2, b"a warning") + frame(1, b"SSH-2.0"))
    stream = ExecStream(HijackedSocket(ours))
    stream.wait_for_output()
    assert stream.recv(100) == b"SSH-2.0"
    theirs.close()
    stream.close()
