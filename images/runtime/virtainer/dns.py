"""A DNS server for short names of other containers, as guests ask no DNS server for a name without dots.

systemd-resolved completes such a name with a search domain, or does not ask at all. So the guest is given one
(DHCP option 119), and this server answers for it: `web.virtainer.internal` is what the container calls `web`.
The domain is the same everywhere, as a memory snapshot of the guest holds it. Message format: RFC 1035, section 4.

With DNS=names this is the only DNS of a guest. The container's resolver may ask other servers for a name that it does
not know, so it is asked only for names without dots, to which it adds nothing, and only addresses on the container's
own networks are passed on. (Docker's asks no other server for such a name with `--dns-option ndots:1`.)
"""

from __future__ import annotations

import os
import socket
import socketserver
import struct
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

DOMAIN = "virtainer.internal"

_HEADER = 12  # bytes
_TTL = 5  # seconds: containers come and go
_ADDRESS, _ADDRESS6, _INTERNET = 1, 28, 1  # types A and AAAA, class IN
_RESPONSE = 0x8580  # an authoritative answer, recursion possible
_NO_SUCH_NAME, _SERVER_FAILURE = 3, 2
_LOOKS_UP_SECONDS = 3600.0  # whether it was shut down, which it never is; the default is twice a second


def serve(only: Iterable[str] | None = None, *, ipv6: bool = False) -> int:
    """Answer in the background from now on, and return the UDP port, on 127.0.0.1.

    Args:
        only: networks: answer only names without dots, with addresses on these networks.
        ipv6: also answer with IPv6 addresses.
    """
    find: Callable[[bytes], list[str]] = look_up_with_ipv6 if ipv6 else look_up
    if only is not None:
        os.environ["LOCALDOMAIN"] = ""  # resolv.conf(5): the resolver completes no name
        find = restricted(find, only)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            query, reply_to = self.request
            reply_to.sendto(answer(query, find), self.client_address)

    server = socketserver.ThreadingUDPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(_LOOKS_UP_SECONDS,), daemon=True).start()
    return int(server.server_address[1])


def look_up(name: bytes) -> list[str]:
    """Ask the container's resolver and its /etc/hosts for IPv4 addresses. Raises socket.gaierror."""
    return _look_up(name, socket.AF_INET)


def look_up_with_ipv6(name: bytes) -> list[str]:
    """Ask like look_up(), for IPv6 addresses as well."""
    return _look_up(name, socket.AF_UNSPEC)


def _look_up(name: bytes, family: socket.AddressFamily) -> list[str]:
    return [str(found[4][0]) for found in socket.getaddrinfo(name, None, family, socket.SOCK_STREAM)]


def restricted(look_up: Callable[[bytes], list[str]], networks: Iterable[str]) -> Callable[[bytes], list[str]]:
    """Return a `look_up` that knows only names without dots, with addresses on these networks."""
    from ipaddress import ip_address, ip_network

    known = [ip_network(each) for each in networks]

    def look_up_some(name: bytes) -> list[str]:
        found = [] if b"." in name else look_up(name)
        near = [each for each in found if any(ip_address(each) in network for network in known)]
        if not near:
            raise socket.gaierror(socket.EAI_NONAME, "")
        return near

    return look_up_some


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
    family = {(_ADDRESS, _INTERNET): socket.AF_INET, (_ADDRESS6, _INTERNET): socket.AF_INET6}.get(kind)
    records = [  # an existing name may have no address of that family
        struct.pack("!HHHIH", 0xC000 | _HEADER, *kind, _TTL, len(packed)) + packed
        for packed in _packed(addresses, family)
    ]
    header = query[:2] + struct.pack("!5H", _RESPONSE | code, 1, len(records), 0, 0)
    return header + query[_HEADER : at + 5] + b"".join(records)


def _packed(addresses: list[str], family: socket.AddressFamily | None) -> list[bytes]:
    """Return the addresses of one family in the protocol's format."""
    ipv6 = family is socket.AF_INET6
    return [socket.inet_pton(family, each) for each in addresses if (":" in each) is ipv6] if family else []
