"""A VNC viewer by RFC 6143."""

import socket
import struct

from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher, modes

_KEYSYMS = {"\b": 0xFF08}


class Viewer:
    """A connection after the handshake; `refusal` is the reason if that failed."""

    def __init__(self, port: int, password: str) -> None:
        self._sock = socket.create_connection(("127.0.0.1", port), timeout=60)
        assert self._read(12) == b"RFB 003.008\n"
        self._sock.sendall(b"RFB 003.008\n")
        kinds = self._read(self._read(1)[0])
        assert kinds == b"\x02", "a password is always asked for"
        self._sock.sendall(b"\x02")
        self._sock.sendall(_answer(password, self._read(16)))
        self.refusal = b""
        if struct.unpack(">I", self._read(4)) != (0,):
            self.refusal = self._read(*struct.unpack(">I", self._read(4)))
            return
        self._sock.sendall(b"\x00")  # shared-flag 0: an exclusive session, the default of viewers
        self.width, self.height = struct.unpack(">HH", self._read(4))
        bits, *_ = self._read(16)
        self.pixel_bytes = bits // 8
        self.name = self._read(*struct.unpack(">I", self._read(4))).decode()

    def __enter__(self) -> "Viewer":
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self._sock.recv(size - len(data))
            assert piece, "the connection has ended"
            data += piece
        return data

    def type(self, text: str) -> None:
        for character in text:
            for down in (1, 0):
                self._sock.sendall(struct.pack(">BBHI", 4, down, 0, _KEYSYMS.get(character, ord(character))))

    def picture(self) -> bytes:
        """Return the whole screen, in raw encoding."""
        self._sock.sendall(struct.pack(">BBHi", 2, 0, 1, 0))
        self._sock.sendall(struct.pack(">BBHHHH", 3, 0, 0, 0, self.width, self.height))
        kind, _, rectangles = struct.unpack(">BBH", self._read(4))
        assert kind == 0
        pixels = b""
        for _ in range(rectangles):
            _, _, width, height, encoding = struct.unpack(">HHHHi", self._read(12))
            assert encoding == 0
            pixels += self._read(width * height * self.pixel_bytes)
        return pixels


def _answer(password: str, challenge: bytes) -> bytes:
    """Encrypt as VNC does: DES with the bits of each key byte reversed (TripleDES with one key is DES)."""
    key = bytes(int(f"{byte:08b}"[::-1], 2) for byte in password.encode().ljust(8, b"\0")[:8])
    encryptor = Cipher(TripleDES(key * 3), modes.ECB()).encryptor()  # noqa: S305  (the protocol's)
    return encryptor.update(challenge) + encryptor.finalize()
