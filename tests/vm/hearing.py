"""Capture frames that the host of the tests sends and receives."""

import contextlib
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator

import pytest

needs_ears = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="only root hears what the host sends"
)
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h
_ALL_FRAMES = 3  # linux/if_ether.h: ETH_P_ALL
_MANY_BYTES = 64 * 2**20  # for frames that were not searched yet
_HIDDEN = {0x88B5, 0x88B6}  # images/runtime/virtainer/bridged_nic.py


@contextlib.contextmanager
def heard(word: bytes, *, hidden: bool = True) -> Iterator[list[str]]:
    """List the interfaces of this host on which a word passes during the block.

    Args:
        word: the word to listen for.
        hidden: whether to search frames that are hidden from this host (with an unknown protocol), too.
    """
    found: list[str] = []
    ears = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL_FRAMES))
    ears.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _MANY_BYTES)
    last = secrets.token_bytes(16)

    def listen() -> None:
        frame = b""
        while last not in frame:
            frame, (interface, protocol, *_) = ears.recvfrom(65536)
            if word in frame and (hidden or protocol not in _HIDDEN):
                found.append(interface)

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        yield found
    finally:
        time.sleep(0.5)
        with socket.socket(type=socket.SOCK_DGRAM) as mouth:
            while thread.is_alive():  # then all frames before the last one were searched
                mouth.sendto(last, ("127.0.0.1", 9))
                thread.join(0.2)
        ears.close()
