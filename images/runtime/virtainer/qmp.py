"""QEMU's machine protocol: a monitor for the supervisor, and the command `qmp` for all others.

https://www.qemu.org/docs/master/interop/qmp-spec.html
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
from pathlib import Path
from typing import Any

SOCKET = Path("/run/virtainer/qmp.sock")
_ANSWER_SECONDS = 30.0
_LONGEST_LINE = 4 * 2**20  # bytes; QEMU's longest real answers are some 100 KiB


def connect(path: Path | None = None) -> socket.socket:
    """Open a connection to QEMU. When QEMU sends nothing for half a minute, reading raises TimeoutError."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(_ANSWER_SECONDS)
    try:
        connection.connect(str(path or SOCKET))
    except OSError:
        connection.close()
        raise
    return connection


class Refused(Exception):
    """QEMU answered a command with an error; the text is QEMU's."""


class Monitor:
    """One QMP connection. Commands may be sent before QEMU's greeting: it reads them one after another."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = b""
        self._asked = 0
        with contextlib.suppress(BrokenPipeError):  # it has ended, which `receive` will report
            self.send({"execute": "qmp_capabilities"})

    def send(self, command: dict[str, Any]) -> None:
        """Send one command, and do not wait for its reply."""
        self._connection.sendall(json.dumps(command).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]]:
        """Wait for data and return the messages that it completes.

        A guest may have taken control of QEMU, so what is not a QMP message is skipped. Raises EOFError when QEMU has
        ended, or sends a line without end.
        """
        data = self._connection.recv(65536)
        if not data:
            raise EOFError
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        if len(self._buffer) > _LONGEST_LINE:
            raise EOFError(f"QEMU sent a line of more than {_LONGEST_LINE} bytes")
        return [message for message in map(_message, lines) if message is not None]

    def ask(self, command: str, **arguments: Any) -> Any:
        """Send one command and return its result; events that arrive first are ignored.

        Raises Refused, or EOFError when QEMU has ended.
        """
        self._asked += 1
        self.send({"execute": command, "arguments": arguments, "id": self._asked})
        while True:
            for message in self.receive():
                if message.get("id") == self._asked:
                    if "error" in message:
                        raise Refused(f"{command}: {message['error']['desc']}")
                    return message.get("return")


def _message(line: bytes) -> dict[str, Any] | None:
    """Return the message on a line; None when it does not have the form of one."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(message, dict) or not isinstance(message.get("data", {}), dict):
        return None
    error = message.get("error")
    if "error" in message and not (isinstance(error, dict) and isinstance(error.get("desc"), str)):
        return None
    return message


def execute(connection: socket.socket, commands: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Send commands one after another; return their replies, each with `return` or `error`."""
    monitor = Monitor(connection)
    replies: list[dict[str, Any]] = []
    for command in [None, *commands]:  # the first reply is to qmp_capabilities
        if command is not None:
            monitor.send(command)
        enough = len(replies) + 1
        while len(replies) < enough:
            replies += [message for message in monitor.receive() if message.keys() & {"return", "error"}]
    return replies[1:]


def main(arguments: list[str], path: Path = SOCKET) -> int:
    """Run `qmp JSON…`: print one reply a line. Exit code 1 when a reply is an error, 2 when none came."""
    try:
        commands = [json.loads(argument) for argument in arguments]
    except ValueError as error:
        return _complain(f"not JSON: {error}")
    if not commands or not all(isinstance(command, dict) for command in commands):
        return _complain("""expected commands such as '{"execute": "query-status"}'""")
    try:
        with connect(path) as connection:
            replies = execute(connection, commands)
    except (OSError, EOFError) as error:
        return _complain(f"no answer on {path}: {error or 'QEMU ended'}")
    for reply in replies:
        print(json.dumps(reply))
    return int(any("error" in reply for reply in replies))


def _complain(text: str) -> int:
    print(f"qmp: {text}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
