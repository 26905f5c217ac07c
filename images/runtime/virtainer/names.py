"""Short names of other containers, for guests that ask no DNS server for a name without dots.

systemd-resolved completes such a name with a search domain, or does not ask at all. So the guest is given one
(DHCP option 119), and this server answers for it: `web.virtainer.internal` is what the container calls `web`.
The domain is the same everywhere, as a memory snapshot of the guest holds it. Message format: RFC 1035, section 4.
"""

from __future__ import annotations

import socket
import socketserver
import struct
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

DOMAIN = "virtainer.internal"

_HEADER = 12  # bytes
_TTL = 5  # seconds: containers come and go
_ADDRESS, _INTERNET = 1, 1  # type A, class IN
_RESPONSE = 0x8580  # an authoritative answer, recursion possible
_NO_SUCH_NAME, _SERVER_FAILURE = 3, 2


def serve() -> int:
    """Answer in the background from now on; returns the UDP port, on 127.0.0.1."""
    server = socketserver.ThreadingUDPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return int(server.server_address[1])


class _Handler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        query, reply_to = self.request
        reply_to.sendto(answer(query, look_up), self.client_address)


def look_up(name: bytes) -> list[str]:
    """Ask the container's resolver and its /etc/hosts for IPv4 addresses. Raises socket.gaierror."""
    return [str(found[4][0]) for found in socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)]


def answer(query: bytes, look_up: Callable[[bytes], list[str]]) -> bytes:
    """Return the answer to a query that dnsmasq has found to be well-formed."""
    labels, at = [], _HEADER
    while length := query[at]:
        labels.append(query[at + 1 : at + 1 + length])
        at += 1 + length
    kind = struct.unpack_from("!HH", query, at + 1)
    code, addresses = 0, []
    try:
        addresses = look_up(b".".join(labels).lower().removesuffix(f".{DOMAIN}".encode()))
    except socket.gaierror as error:
        code = _SERVER_FAILURE if error.errno == socket.EAI_AGAIN else _NO_SUCH_NAME
    if kind != (_ADDRESS, _INTERNET):
        addresses = []  # the name exists, and has nothing of that kind
    records = [
        struct.pack("!HHHIH4s", 0xC000 | _HEADER, _ADDRESS, _INTERNET, _TTL, 4, socket.inet_aton(address))
        for address in addresses
    ]
    header = query[:2] + struct.pack("!5H", _RESPONSE | code, 1, len(records), 0, 0)
    return header + query[_HEADER : at + 5] + b"".join(records)
