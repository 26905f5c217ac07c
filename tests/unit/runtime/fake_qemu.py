"""A socket in place of QEMU's, for commands that connect to it and pass files."""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def listed(*names: str) -> list[dict[str, str]]:
    """Return QEMU's answer to a question for its devices with names."""
    return [{"name": "type", "type": "string"}, *({"name": name, "type": "child<a-device>"} for name in names)]


class FakeQemu:
    """Answers each command with the next of its replies, `{}` where there are none; records the commands.

    A text is an error; a text to return is in a tuple.

    Attributes:
        asked: each command's name and arguments.
        files: the files that were passed to it, open, by the number of their set.
        on: called with the arguments of a command, before it is answered.
    """

    def __init__(self, **replies: list[Any]) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.files: dict[int, int] = {}
        self.on: dict[str, Callable[[dict[str, Any]], object]] = {}
        self._replies = {name.replace("_", "-"): each for name, each in replies.items()}

    @property
    def commands(self) -> list[str]:
        """The names of the commands."""
        return [name for name, _ in self.asked if name != "qmp_capabilities"]

    def arguments(self, command: str) -> list[dict[str, Any]]:
        """Return the arguments of each call of a command."""
        return [arguments for name, arguments in self.asked if name == command]

    @contextlib.contextmanager
    def listening(self, path: Path) -> Iterator[FakeQemu]:
        """Serve callers, one after another, during the block."""
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
            server.listen()

            def serve() -> None:
                with contextlib.suppress(OSError):
                    while True:
                        self._serve(server.accept()[0])

            thread = threading.Thread(target=serve, daemon=True)
            thread.start()
            try:
                yield self
            finally:
                server.shutdown(socket.SHUT_RDWR)
                thread.join(5)

    def _serve(self, connection: socket.socket) -> None:
        buffer, passed = b"", array.array("i")
        with connection:
            connection.sendall(b'{"QMP": {}}\r\n')
            while True:
                data, rights, _, _ = connection.recvmsg(4096, socket.CMSG_SPACE(passed.itemsize))
                for _, _, each in rights:
                    passed.frombytes(each)
                if not data:
                    return
                *lines, buffer = (buffer + data).split(b"\n")
                for line in lines:
                    command = json.loads(line)
                    answer = json.dumps(self._answer(command, passed)).encode()
                    connection.sendall(b'{"event": "RTC_CHANGE"}\r\n' + answer + b"\r\n")

    def _answer(self, command: dict[str, Any], passed: array.array[int]) -> dict[str, Any]:
        name, arguments = command["execute"], command.get("arguments", {})
        self.asked.append((name, arguments))
        if name in self.on:
            self.on[name](arguments)
        reply: Any = {}
        if name == "add-fd":
            reply = {"fdset-id": 3 + len(self.files), "fd": 20}
            self.files[reply["fdset-id"]] = passed.pop(0)
        elif name == "remove-fd":
            os.close(self.files[arguments["fdset-id"]])
        elif replies := self._replies.get(name.replace("_", "-")):
            reply = replies.pop(0)
        if isinstance(reply, str):
            return {"error": {"desc": reply}, "id": command.get("id")}
        if isinstance(reply, tuple):
            (reply,) = reply
        return {"return": reply, "id": command.get("id")}
