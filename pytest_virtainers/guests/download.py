"""Files from the web, past servers and lines that fail: gone on with, tried again, unpacked on the way, and checked.

Bytes arrive in `NAME.part`, which stays when a download is broken off: the next one goes on from there. From the
beginning they also go through the digest and the unpacker, so when the last one is here, the file is ready or thrown
away. What is unpacked shows by its first bytes, not by its name. HTTP: RFC 9110, ranges in section 14.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING
from urllib.parse import urldefrag, urlsplit

from pytest_virtainers.errors import ImageError, StoreError
from pytest_virtainers.guests.decompress import Damaged, Unpacker
from pytest_virtainers.support.progress import bar

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import requests

_CHUNK_BYTES = 64 * 1024  # of which less is lost when a connection is
_CONNECT_SECONDS, _SILENCE_SECONDS = 15.0, 60.0
_FRUITLESS_TRIES = 5  # in a row, without a byte more
_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 1.0, 30.0
_PART, _UNPACKED = ".part", ".unpacked"
_LENGTHS = {64: "sha256", 128: "sha512"}
_FRAGMENT = re.compile(r"(sha256|sha512)=([0-9a-f]+)")
_PASSING = {408, 425, 429, 500, 502, 503, 504}  # what a server may answer now and not a moment later
_OK, _PARTIAL, _PAST_THE_END = 200, 206, 416


@dataclass(frozen=True)
class Digest:
    """What a file has to hash to, as it is downloaded: `sha256` or `sha512`, and that in lower-case hex."""

    algorithm: str
    value: str

    @classmethod
    def of(cls, value: str) -> Digest:
        """Tell the algorithm by the length; raises ValueError."""
        algorithm = _LENGTHS.get(len(value))
        if algorithm is None or not re.fullmatch("[0-9a-f]+", value.lower()):
            raise ValueError(f"{value!r} is no SHA-256 (64 hex digits) or SHA-512 (128)")
        return cls(algorithm, value.lower())


class _Broken(Exception):
    """The download has been cut off, and may be gone on with."""


class _Restart(Exception):
    """What is here is not the beginning of what the server has."""


class _Wrong(Exception):
    """All of it is here, and it is not what it should be; the text says so in a sentence.

    Attributes:
        pieced: whether its pieces are of servers that do not agree on what they have.
    """

    def __init__(self, text: str, *, pieced: bool) -> None:
        super().__init__(text)
        self.pieced = pieced


def split(url: str) -> tuple[str, Digest | None]:
    """Take the digest off a URL `https://…/disk.qcow2#sha256=…`; raises `ImageError`."""
    bare, fragment = urldefrag(url)
    digest = None
    if fragment:
        found = _FRAGMENT.fullmatch(fragment.lower())
        if not found or _LENGTHS.get(len(found[2])) != found[1]:
            raise ImageError(f"image {url}: after the # should be sha256= and 64 hex digits, or sha512= and 128")
        digest = Digest(found[1], found[2])
    parts = urlsplit(bare)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ImageError(f"image {url}: only http:// and https:// can be fetched")
    if parts.scheme == "http" and digest is None:
        raise ImageError(f"image {url}: over http anybody may have changed it. Say what it is: {bare}#sha256=…")
    return bare, digest


@dataclass(frozen=True)
class _Wanted:
    """What to fetch: a URL, what it has to hash to, whom to tell how far it is, and the first wait between tries."""

    url: str
    digest: Digest | None
    tell: Callable[[str], object]
    wait: float


def fetch(
    url: str, digest: Digest | None, target: Path, tell: Callable[[str], object], wait: float = _WAIT_SECONDS
) -> str:
    """Download and unpack a file to `target`, which is there only when all of it is there and right.

    Returns the SHA-256 of what is in `target`.

    Args:
        url: without a digest.
        digest: of the file as it is downloaded; None: whatever comes by TLS is taken.
        target: beside it, `NAME.part` is what was downloaded so far, and `NAME.unpacked` for the moment. The caller
            sees to it that nobody else fetches it.
        tell: called with how far it is.
        wait: seconds before the second try; then longer ones.

    Raises:
        ImageError: the server has no such file, or another one, or does not give all of it.
        StoreError: it cannot be written.
    """
    part, unpacked = (target.with_name(f"{target.name}{suffix}") for suffix in (_PART, _UNPACKED))
    try:
        if digest is None:  # what an earlier try has left may be of another version, and nothing would tell
            part.unlink(missing_ok=True)
        content = _fetch_right(_Wanted(url, digest, tell, wait), part, unpacked)
        unpacked.replace(target)
        part.unlink()
    except OSError as error:
        raise StoreError(
            f"fetching {url} failed: {target.parent} cannot be written: {error.strerror}. Make room there, or set "
            "XDG_CACHE_HOME to a place that has it"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            unpacked.unlink(missing_ok=True)
            if digest is None or not part.stat().st_size:
                part.unlink()
    return content


def _fetch_right(wanted: _Wanted, part: Path, unpacked: Path) -> str:
    """Fetch it; twice if what an earlier try has left may be why it is wrong."""
    fresh = not part.exists()
    for again in (True, False):
        try:
            return _fetch_once(wanted, part, unpacked)
        except _Wrong as wrong:
            part.unlink()
            if not again or (fresh and not wrong.pieced):
                raise ImageError(f"{wrong} It was thrown away") from None
        wanted.tell("what an earlier try has left does not fit: once more from the beginning")
    raise AssertionError  # the loop has no other end


def _fetch_once(wanted: _Wanted, part: Path, unpacked: Path) -> str:
    with _opened(part, "a+b", os.O_APPEND) as file, _opened(unpacked, "wb", os.O_TRUNC) as out:
        sink = _Sink(wanted.digest, out)
        pieced = _Download(wanted, file, sink).run()
        size = file.tell()
        found = f"fetching {wanted.url}: what came ({size} bytes)"
        if wanted.digest is not None and sink.hexdigest() != wanted.digest.value:
            raise _Wrong(
                f"{found} has {wanted.digest.algorithm} {sink.hexdigest()}, and should have {wanted.digest.value}: "
                "somebody has changed it, or there is a new version of it.",
                pieced=pieced,
            )
        try:
            sink.end()
        except Damaged as error:
            raise _Wrong(f"{found} is damaged: {error}.", pieced=pieced) from None
        return sink.content()


def _opened(path: Path, mode: str, how: int) -> IO[bytes]:
    """Open a private file for writing; a link in its place is an `OSError`."""
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | how, 0o600), mode)


class _Sink:
    """Where bytes go, from the first one on: through the digest, and unpacked into a file."""

    def __init__(self, digest: Digest | None, out: IO[bytes]) -> None:
        self._algorithm = digest.algorithm if digest else "sha256"
        self._out = out
        self._begin()

    def _begin(self) -> None:
        self._hash, self._content = hashlib.new(self._algorithm), hashlib.sha256()
        self._unpacker = Unpacker(self._write)
        self._damage: Damaged | None = None

    def write(self, data: bytes) -> None:
        self._hash.update(data)
        if self._damage is None:
            try:
                self._unpacker.write(data)
            except Damaged as error:  # the digest may say more of it, at the end
                self._damage = error

    def _write(self, unpacked: bytes) -> None:
        self._content.update(unpacked)
        self._out.write(unpacked)

    def restart(self) -> None:
        self._out.seek(0)
        self._out.truncate()
        self._begin()

    def end(self) -> None:
        """Write the rest; raises Damaged."""
        if self._damage is not None:
            raise self._damage
        self._unpacker.end()
        self._out.flush()

    def hexdigest(self) -> str:
        """Give the digest of what came."""
        return self._hash.hexdigest()

    def content(self) -> str:
        """Give the SHA-256 of what was in it."""
        return self._content.hexdigest()


class _Download:
    """One download into a file that may have some of it already."""

    def __init__(self, wanted: _Wanted, file: IO[bytes], sink: _Sink) -> None:
        self._url, self._tell, self._wait = wanted.url, wanted.tell, wanted.wait
        self._pinned = wanted.digest is not None
        self._file, self._sink = file, sink
        self._version = ""  # the server's name of what is being downloaded
        self._pieced = False
        self._fruitless, self._furthest = 0, 0

    def run(self) -> bool:
        """Return when the server has no more: whether it named pieces differently; raises ImageError."""
        import requests
        import tenacity

        self._file.seek(0)
        while data := self._file.read(_CHUNK_BYTES):
            self._sink.write(data)
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_Broken),
            wait=tenacity.wait_exponential(self._wait, max=_LONGEST_WAIT_SECONDS),
            stop=lambda _: self._fruitless >= _FRUITLESS_TRIES,
            reraise=True,
            sleep=self._sleep,
        )
        try:
            with requests.Session() as session:
                retrying(self._go_on, session)
        except _Broken as error:
            kept = (
                "What came is kept, and the next run goes on from there"
                if self._pinned and self._file.tell()
                else ("If it cannot be reached from here, fetch the image elsewhere and give its path")
            )
            raise ImageError(
                f"fetching {self._url} failed after {self._file.tell()} bytes, as {_FRUITLESS_TRIES} tries in a row "
                f"brought nothing: {error}. {kept}"
            ) from None
        return self._pieced

    def _sleep(self, seconds: float) -> None:
        self._tell(f"broken off at {self._file.tell() // 2**20} MiB; trying again in {seconds:.0f} s")
        time.sleep(seconds)

    def _go_on(self, session: requests.Session) -> None:
        """Read on from where the file ends; return when that was all."""
        import requests

        self._fruitless += 1
        if not self._version and not self._pinned:
            self._start_over()  # nothing would tell that it is another version now
        start = self._file.tell()
        headers = {"Accept-Encoding": "identity"}  # a range of something that is packed for the way is no use
        if start:
            headers["Range"] = f"bytes={start}-"
            if self._version and not self._pinned:  # each mirror of one file has another name of its version
                headers["If-Range"] = self._version
        try:
            with session.get(
                self._url, headers=headers, stream=True, timeout=(_CONNECT_SECONDS, _SILENCE_SECONDS)
            ) as answer:
                self._read(answer, start)
        except _Restart:
            self._start_over()
            raise _Broken("the server has not what was here already") from None
        except requests.exceptions.SSLError as error:
            raise ImageError(
                f"fetching {self._url} failed: {_cause(error)}. If its certificate is of an authority of your own, "
                "name the file with that one's in REQUESTS_CA_BUNDLE"
            ) from None
        except requests.TooManyRedirects:
            raise ImageError(
                f"fetching {self._url} failed: the server leads from one place to the next forever"
            ) from None
        except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema) as error:
            raise ImageError(f"fetching {self._url} failed: {error}") from None
        except requests.RequestException as error:
            raise _Broken(_cause(error)) from None

    def _count(self) -> None:
        """Note whether this try is of use: what was here before is nothing new."""
        if self._file.tell() > self._furthest:
            self._fruitless, self._furthest = 0, self._file.tell()

    def _start_over(self) -> None:
        self._pieced = False
        self._file.seek(0)
        self._file.truncate()
        self._sink.restart()

    def _read(self, answer: requests.Response, start: int) -> None:
        import requests

        if not self._pinned and any(urlsplit(each.url).scheme != "https" for each in (*answer.history, answer)):
            raise ImageError(
                f"fetching {self._url} failed: it leads to {answer.url} by way of http, where anybody may have "
                f"changed it. Say what it is: {self._url}#sha256=…"
            )
        if answer.status_code in _PASSING:
            raise _Broken(f"the server answered {answer.status_code} {answer.reason}")
        whole, begins = _range(answer)
        if answer.status_code == _PAST_THE_END and start:
            if whole == start:
                return
            raise _Restart
        if answer.status_code not in {_OK, _PARTIAL}:
            raise ImageError(f"fetching {self._url} failed: the server answered {answer.status_code} {answer.reason}")
        version = _version(answer)
        if answer.status_code == _PARTIAL and (
            begins != start or (not self._pinned and version and version != (self._version or version))
        ):
            raise _Restart
        if start and answer.status_code == _OK:  # it knows no ranges, or has another version now
            self._start_over()
        elif start and version != self._version:
            self._pieced = True
        self._version = version or self._version
        with contextlib.suppress(requests.exceptions.ChunkedEncodingError):  # how requests says that it was cut
            for data in answer.iter_content(_CHUNK_BYTES):
                self._file.write(data)
                self._sink.write(data)
                self._count()
                self._tell(bar(self._file.tell(), whole))
            if whole is None or self._file.tell() >= whole:
                return
        raise _Broken(f"the connection was cut after {self._file.tell()} of {whole or 'unknown'} bytes")


def _range(answer: requests.Response) -> tuple[int | None, int]:
    """Give the size of the whole file, if the server says it, and where in it the answer begins."""
    said = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", answer.headers.get("Content-Range", ""))
    if answer.status_code != _OK and said:
        return (None if said[2] == "*" else int(said[2])), int(said[1] or 0)
    length = answer.headers.get("Content-Length", "")
    return (int(length) if length.isdigit() else None), 0


def _version(answer: requests.Response) -> str:
    """Name what the server has now, for If-Range, which takes no weak names."""
    tag = str(answer.headers.get("ETag", ""))
    return tag if tag and not tag.startswith("W/") else str(answer.headers.get("Last-Modified", ""))


def _cause(error: BaseException) -> str:
    """Say what went wrong below, without the names of classes around it."""
    while (inner := error.__cause__ or error.__context__ or _reason(error)) is not None:
        error = inner
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _reason(error: BaseException) -> BaseException | None:
    reason = getattr(error, "reason", None)
    return reason if isinstance(reason, BaseException) else None
