"""The command `vnc`: the guest's screen, keyboard and pointer on stdin and stdout, as VNC (RFC 6143).

    docker exec -i CONTAINER vnc [--password]

Nothing listens for viewers: QEMU gets one end of a pair of sockets for each. It asks them for the last password that
was set, and admits no viewer before that. QMP's `set_password` sets one, or the first line of stdin, which does not
appear in process lists.
"""

from __future__ import annotations

import os
import socket
import sys

from virtainer import qmp
from virtainer.devices import pass_descriptor

_NAME = "viewer"


def connect(password: str | None) -> socket.socket:
    """Return a connection to QEMU's VNC server. Raises qmp.Refused, OSError, or EOFError when QEMU has ended.

    `password` is set before, if there is one.
    """
    ours, theirs = socket.socketpair()
    with theirs, qmp.connect() as connection:
        monitor = qmp.Monitor(connection)
        if password is not None:
            monitor.ask("set_password", protocol="vnc", password=password)
        pass_descriptor(connection, theirs.fileno())
        monitor.ask("getfd", fdname=_NAME)
        monitor.ask("add_client", protocol="vnc", fdname=_NAME)
    return ours


def read_line(file: int = 0) -> str:
    """Read one line, and nothing of what follows it: another reader needs that."""
    line = b""
    while (byte := os.read(file, 1)) not in (b"", b"\n"):
        line += byte
    return line.decode()


def main(arguments: list[str]) -> None:
    """Run the command: exit code 1 when there is no connection, 2 for wrong usage."""
    if arguments not in ([], ["--password"]):
        print("usage: vnc [--password]", file=sys.stderr)
        sys.exit(2)
    try:
        connection = connect(read_line() if arguments else None)
    except (OSError, EOFError, qmp.Refused) as error:
        sys.exit(f"vnc: {error or 'QEMU ended'}")
    connection.set_inheritable(True)
    os.execvp("socat", ["socat", "-t", "1", "-", f"FD:{connection.fileno()}"])  # noqa: S606


if __name__ == "__main__":
    main(sys.argv[1:])
