"""The DNS server for short names."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from pathlib import Path

import pytest
from virtainer import dns

A, AAAA = 1, 28


def query(name: str, kind: int = A) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return b"\x12\x34" + struct.pack("!5H", 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", kind, 1)


def resolver(name: bytes) -> list[str]:
    """Return known names; fail for the others, for `slow` only temporarily."""
    known = {
        b"web": ["172.18.0.2"],
        b"my_db": ["172.18.0.3", "172.18.0.4"],
        b"both": ["172.18.0.5", "fd00::5"],
        b"com": ["203.0.113.1"],
        b"web.left": ["172.18.0.2"],
    }
    if name not in known:
        raise socket.gaierror(socket.EAI_AGAIN if name == b"slow" else socket.EAI_NONAME, "")
    return known[name]


def parse(reply: bytes, asked: bytes) -> tuple[int, list[str]]:
    """Return response code and addresses, once the reply fits the query."""
    ident, flags, questions, answers, _, _ = struct.unpack_from("!6H", reply)
    assert (ident, questions) == (0x1234, 1)
    assert reply[12:].startswith(asked[12:])
    records = reply[len(asked) :]
    found = []
    while records:
        kind, length = struct.unpack_from("!2xH6xH", records)
        found.append(socket.inet_ntop({A: socket.AF_INET, AAAA: socket.AF_INET6}[kind], records[12 : 12 + length]))
        records = records[12 + length :]
    assert len(found) == answers
    return flags & 0xF, found


@pytest.mark.parametrize(
    ("name", "kind", "code", "addresses"),
    [
        ("web.virtainer.internal", A, 0, ["172.18.0.2"]),
        ("Web.Virtainer.Internal", A, 0, ["172.18.0.2"]),
        ("my_db.virtainer.internal", A, 0, ["172.18.0.3", "172.18.0.4"]),
        ("web.virtainer.internal", AAAA, 0, []),
        ("both.virtainer.internal", A, 0, ["172.18.0.5"]),
        ("both.virtainer.internal", AAAA, 0, ["fd00::5"]),
        ("both.virtainer.internal", 16, 0, []),
        ("unknown.virtainer.internal", A, 3, []),
        ("slow.virtainer.internal", A, 2, []),
    ],
)
def test_replies_have_the_right_code_and_addresses(name: str, kind: int, code: int, addresses: list[str]) -> None:
    asked = query(name, kind)
    assert parse(dns.answer(asked, resolver), asked) == (code, addresses)


def test_it_answers_from_the_resolver_of_the_container() -> None:
    port = dns.serve()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        asked = query("localhost.virtainer.internal")
        client.sendto(asked, ("127.0.0.1", port))
        assert "127.0.0.1" in parse(client.recv(512), asked)[1]


@pytest.mark.parametrize(
    ("name", "code", "addresses"),
    [
        ("web.virtainer.internal", 0, ["172.18.0.2"]),
        ("web", 0, ["172.18.0.2"]),
        ("web.left", 3, []),
        ("web.left.virtainer.internal", 3, []),
        ("com", 3, []),
        ("slow", 2, []),
    ],
)
def test_names_only_refuses_dots_and_foreign_addresses(name: str, code: int, addresses: list[str]) -> None:
    asked = query(name)
    restricted = dns.restricted(resolver, ["172.18.0.0/16", "fd00::/64"])
    assert parse(dns.answer(asked, restricted), asked) == (code, addresses)


def test_names_only_prevents_the_resolver_from_completing_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALDOMAIN", "example.com")
    port = dns.serve(["127.0.0.0/8", "::1/128"], ipv6=True)
    assert os.environ["LOCALDOMAIN"] == ""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(60)
        asked = query("localhost", AAAA)
        client.sendto(asked, ("127.0.0.1", port))
        assert parse(client.recv(512), asked)[1] in (["::1"], [])  # as /etc/hosts has it


def test_an_idle_server_sleeps() -> None:
    before = {thread.native_id for thread in threading.enumerate()}
    dns.serve()
    (server,) = {thread.native_id for thread in threading.enumerate()} - before
    status = Path(f"/proc/self/task/{server}/status")

    def switches() -> str:
        return status.read_text().partition("voluntary_ctxt_switches")[2]

    for _ in range(30):  # until it has begun to wait
        before_it = switches()
        time.sleep(0.2)
        if (asleep := switches()) == before_it:
            break
    time.sleep(1.2)
    assert switches() == asleep
