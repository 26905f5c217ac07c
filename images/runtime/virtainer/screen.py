"""The command `screenshot`: what the guest's screen shows, as a PNG on stdout (docker exec CONTAINER screenshot)."""

from __future__ import annotations

import os
import sys

from virtainer import qmp
from virtainer.devices import pass_file

_ANSWER_SECONDS = 10.0


def png() -> bytes:
    """Return the picture. Raises qmp.Refused, OSError, or EOFError when QEMU has ended."""
    memory = os.memfd_create("screen")
    file = os.open(f"/proc/self/fd/{memory}", os.O_WRONLY)  # QEMU accepts only a file opened with its own flags
    with qmp.connect() as connection, open(memory, "rb") as picture:  # noqa: PTH123  (it has no path)
        connection.settimeout(_ANSWER_SECONDS)
        monitor = qmp.Monitor(connection)
        fdset = pass_file(monitor, connection, file)
        try:
            monitor.ask("screendump", filename=f"/dev/fdset/{fdset}", format="png")
        finally:
            monitor.ask("remove-fd", **{"fdset-id": fdset})
            os.close(file)
        picture.seek(0)
        return picture.read()


def main() -> int:
    """Run the command: exit code 1 when there is no picture."""
    try:
        picture = png()
    except (OSError, EOFError, qmp.Refused) as error:
        print(f"screenshot: {error or 'QEMU ended'}", file=sys.stderr)
        return 1
    sys.stdout.buffer.write(picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
