"""`python -m pytest_virtainers.engine.relay URL CONTAINER COMMAND…`: an exec session on stdin and stdout.

It is the ProxyCommand for OpenSSH where this host is not on a container's network, and needs no engine command line.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING

from pytest_virtainers.engine.detect import find

if TYPE_CHECKING:
    from pytest_virtainers.engine.base import Stream

_CHUNK_BYTES = 64 * 1024


def main() -> None:
    """Copy in both directions until the session ends."""
    url, container, *command = sys.argv[1:]
    stream = find(url).adopt(container).stream(command)
    stream.settimeout(None)
    threading.Thread(target=_feed, args=(stream,), daemon=True).start()
    try:
        stream.wait_for_output()
    except ConnectionError as error:
        sys.exit(f"virtainers: {error}")
    while data := stream.recv(_CHUNK_BYTES):
        os.write(sys.stdout.fileno(), data)


def _feed(stream: Stream) -> None:
    while data := os.read(sys.stdin.fileno(), _CHUNK_BYTES):
        while data:
            data = data[stream.send(data) :]
    stream.close()


if __name__ == "__main__":
    main()
