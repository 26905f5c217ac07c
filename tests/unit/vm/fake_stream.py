"""The stream of a command in a container."""


class Stream:
    """The output of tcpdump in a container, in pieces; it ends on request."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces, self.closed = list(pieces), False

    def settimeout(self, seconds: float | None) -> None:
        pass

    def send(self, data: bytes) -> int:
        raise AssertionError("tcpdump gets no input")

    def wait_for_output(self) -> None:
        pass

    def recv(self, size: int) -> bytes:
        if not self.pieces:
            return b""
        piece = self.pieces.pop(0)
        if len(piece) > size:
            self.pieces.insert(0, piece[size:])
        return piece[:size]

    def close_input(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True
