"""The command `vnc`: the guest's screen, keyboard and pointer on stdin and stdout, as VNC (RFC 6143).

    docker exec -i CONTAINER vnc

Nothing listens for viewers: QEMU is handed one end of a pair of sockets for each. It asks them for the password that
QMP's `set_password` gave it, and lets nobody in before that.
"""

from __future__ import annotations

import os
import socket
import sys

from virtainer import qmp
from virtainer.devices import pass_descriptor

_NAME = "viewer"


def connect() -> socket.socket:
    """Return a connection to QEMU's VNC server. Raises qmp.Refused, OSError, or EOFError when QEMU is gone."""
    ours, theirs = socket.socketpair()
    with theirs, qmp.connect() as connection:
        monitor = qmp.Monitor(connection)
        pass_descriptor(connection, theirs.fileno())
        monitor.ask("getfd", fdname=_NAME)
        monitor.ask("add_client", protocol="vnc", fdname=_NAME)
    return ours


def main() -> None:
    """Run the command: exit code 1 when there is no connection."""
    try:
        connection = connect()
    except (OSError, EOFError, qmp.Refused) as error:
        sys.exit(f"vnc: {error or 'QEMU ended'}")
    connection.set_inheritable(True)
    os.execvp("socat", ["socat", "-t", "1", "-", f"FD:{connection.fileno()}"])  # noqa: S606


if __name__ == "__main__":
    main()
