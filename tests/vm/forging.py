"""Frames that a guest's root may send, with any sender."""

import itertools
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address

from pytest_virtainers import VM

PORT = 9000
LISTEN = """
import socket
with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as here:  # IPv4, too
    here.bind(("", 9000))
    print("listening", flush=True)
    while True:
        print(here.recv(100).decode(), flush=True)
"""
_SEND = """
import socket, sys
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as card:
    card.bind((sys.argv[1], 0))
    for frame in sys.argv[2:]:
        card.send(bytes.fromhex(frame))
"""
LAST = "last"  # sent by a later command than the frames that have to arrive first
_ARP, _IPV4, _IPV6, _VLAN = 0x0806, 0x0800, 0x86DD, 0x8100


def send(vm: VM, device: str, *frames: bytes) -> None:
    vm.run(["python3", "-c", _SEND, device, *(frame.hex() for frame in frames)], sudo=True)


def received_before_last(heard: Iterator[str]) -> list[str]:
    """Return the texts that arrive before `LAST`, sorted: datagrams of one command may overtake each other."""
    return sorted(itertools.takewhile(lambda text: text != LAST, heard))


def datagram(sender: str, receiver: str, text: str) -> tuple[int, bytes]:
    """Return EtherType and packet of a UDP datagram."""
    source, target = ip_address(sender), ip_address(receiver)
    payload = text.encode()
    length = 8 + len(payload)
    pseudo = source.packed + target.packed + struct.pack(">HH", socket.IPPROTO_UDP, length)
    udp = struct.pack(">HHHH", PORT, PORT, length, 0) + payload
    udp = udp[:6] + struct.pack(">H", _checksum(pseudo + udp)) + payload
    if isinstance(source, IPv6Address):
        return _IPV6, struct.pack(
            ">IHBB", 6 << 28, length, socket.IPPROTO_UDP, 64
        ) + source.packed + target.packed + udp
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + length, 1, 0, 64, socket.IPPROTO_UDP, 0)
    head = head[:10] + struct.pack(">H", _checksum(head + source.packed + target.packed))
    return _IPV4, head + source.packed + target.packed + udp


def arp_reply(mac: str, sender: str, to_mac: str, receiver: str) -> tuple[int, bytes]:
    """Return EtherType and packet of the answer that `sender` is at `mac`."""
    addresses = [_packed(mac), IPv4Address(sender).packed, _packed(to_mac), IPv4Address(receiver).packed]
    return _ARP, struct.pack(">HHBBH", 1, _IPV4, 6, 4, 2) + b"".join(addresses)


def frame(to_mac: str, mac: str, content: tuple[int, bytes], *, tags: int = 0) -> bytes:
    """Return a complete frame; `tags` are for VLAN 0, which means none."""
    kind, packet = content
    return _packed(to_mac) + _packed(mac) + struct.pack(">HH", _VLAN, 0) * tags + struct.pack(">H", kind) + packet


def _packed(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def _checksum(data: bytes) -> int:
    data += bytes(len(data) % 2)
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
