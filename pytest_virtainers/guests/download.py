"""Resumable, retried and verified downloads, decompressed if necessary.

Bytes arrive in `NAME.part`. An interrupted download leaves that file, and the next one resumes from it if a digest
proves the result. HTTP: RFC 9110, ranges in section 14.
"""

from __future__ import annotations

import contextlib
import re
import time
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING
from urllib.parse import urldefrag, urlsplit

from pytest_virtainers.errors import ImageError, SpecError, StoreError
from pytest_virtainers.guests.decompress import Damaged, decompress, is_compressed
from pytest_virtainers.support.files import file_digest, open_private
from pytest_virtainers.support.paths import cache_folder, why_unsafe
from pytest_virtainers.support.progress import bar

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import requests

_CHUNK_BYTES = 64 * 1024  # an interrupted connection loses less than this
_CONNECT_SECONDS, _READ_SECONDS = 15.0, 60.0
_KEPT_DAYS = 14
_FRUITLESS_TRIES = 5  # in a row, without a new byte
_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 1.0, 30.0
_LENGTHS = {64: "sha256", 128: "sha512"}
_FRAGMENT = re.compile(r"(sha256|sha512)=([0-9a-f]+)")
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}  # statuses that may be different a moment later
_OK, _PARTIAL, _RANGE_NOT_SATISFIABLE = 200, 206, 416


@dataclass(frozen=True)
class Digest:
    """The expected digest of a file as downloaded: `sha256` or `sha512`, in lower-case hex."""

    algorithm: str
    value: str

    @classmethod
    def of(cls, value: str) -> Digest:
        """Return a digest whose algorithm follows from its length; raise `ValueError` for another length."""
        algorithm = _LENGTHS.get(len(value))
        if algorithm is None or not re.fullmatch("[0-9a-f]+", value.lower()):
            raise ValueError(f"{value!r} is neither a SHA-256 (64 hex digits) nor a SHA-512 (128 hex digits)")
        return cls(algorithm, value.lower())


class _Interrupted(Exception):
    """The download was interrupted and can be resumed."""


def folder() -> Path:
    """Return the folder for downloads, created if necessary.

    Files in it that interrupted downloads and killed processes left two weeks ago are removed. Raises `SpecError` if
    other users could change its content.
    """
    downloads = cache_folder() / "downloads"
    downloads.mkdir(mode=0o700, exist_ok=True)
    if why := why_unsafe(downloads):
        raise SpecError(f"{downloads}: {why}: another user could replace the downloads in it")
    for path in downloads.iterdir():
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _KEPT_DAYS * 86400:
                path.unlink()
    return downloads


def split(url: str) -> tuple[str, Digest | None]:
    """Separate the digest from a URL `https://…/disk.qcow2#sha256=…`; raise `ImageError` for an unusable URL."""
    bare, fragment = urldefrag(url)
    digest = None
    if fragment:
        found = _FRAGMENT.fullmatch(fragment.lower())
        if not found or _LENGTHS.get(len(found[2])) != found[1]:
            raise ImageError(f"image {url}: expected sha256= and 64 hex digits, or sha512= and 128, after the #")
        digest = Digest(found[1], found[2])
    parts = urlsplit(bare)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ImageError(f"image {url}: the URL must start with http:// or https://")
    if parts.scheme == "http" and digest is None:
        raise ImageError(f"image {url}: http does not protect the download. Add the digest: {bare}#sha256=…")
    return bare, digest


def fetch(
    url: str, digest: Digest | None, target: Path, report: Callable[[str], object], wait: float = _WAIT_SECONDS
) -> str:
    """Download a file to `target`, verify and decompress it, and return the SHA-256 of the result.

    `target` exists only if all of that succeeded.

    Args:
        url: without a digest.
        digest: of the file as downloaded; `None` trusts TLS.
        target: `NAME.part` and `NAME.unpacked` next to it are temporary. The caller must prevent two downloads to
            the same target.
        report: called with the progress.
        wait: seconds before the second attempt; later waits are longer.

    Raises:
        ImageError: the server does not offer the file, offers a different one, or does not send all of it.
        StoreError: the file cannot be written.
    """
    part, plain = (target.with_name(f"{target.name}.{suffix}") for suffix in ("part", "unpacked"))
    try:
        if digest is None:  # a part of another version would go unnoticed
            part.unlink(missing_ok=True)
        _download(url, digest, part, report, wait)
        if is_compressed(part):
            sha256 = decompress(part, plain, report)
            plain.replace(target)
            part.unlink()
        else:
            sha256 = digest.value if digest and digest.algorithm == "sha256" else file_digest(part, report)
            part.replace(target)
    except Damaged as error:
        part.unlink()
        raise ImageError(f"fetching {url} failed: the downloaded file is damaged: {error}. It was deleted") from None
    except OSError as error:
        raise StoreError(
            f"fetching {url} failed: cannot write to {target.parent}: {error.strerror}. Free space there, or set "
            "XDG_CACHE_HOME to a folder with enough space"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            plain.unlink(missing_ok=True)
            if digest is None or not part.stat().st_size:
                part.unlink()
    return sha256


def _download(url: str, digest: Digest | None, part: Path, report: Callable[[str], object], wait: float) -> None:
    """Download until `part` has the expected digest; try twice if the first result was put together from pieces."""
    for attempt in (1, 2):
        with open_private(part, "ab") as file:
            resumed = _Download(url, file, report, pinned=digest is not None).run(wait)
        if digest is None:
            return
        found, size = file_digest(part, report, digest.algorithm), part.stat().st_size
        if found == digest.value:
            return
        part.unlink()
        if attempt == 2 or not resumed:  # noqa: PLR2004
            raise ImageError(
                f"fetching {url} failed: the downloaded file ({size} bytes) has {digest.algorithm} {found}, expected "
                f"{digest.value}: it was changed, or replaced by a new version. It was deleted"
            )
        report("the resumed file does not match its digest; downloading it again")


class _Download:
    """A download into a file that may already have the beginning of it."""

    def __init__(self, url: str, file: IO[bytes], report: Callable[[str], object], *, pinned: bool) -> None:
        self._url, self._file, self._report, self._pinned = url, file, report, pinned
        self._version = ""  # the server's validator of what is being downloaded
        self._resumed = False
        self._fruitless, self._furthest = 0, 0

    def run(self, wait: float) -> bool:
        """Download to the end of the file; return whether several responses are in it. Raises `ImageError`."""
        import requests
        import tenacity

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_Interrupted),
            wait=lambda _: min(wait * 2 ** max(self._fruitless - 1, 0), _LONGEST_WAIT_SECONDS),
            stop=lambda _: self._fruitless >= _FRUITLESS_TRIES,
            sleep=self._sleep,
            reraise=True,
        )
        try:
            with requests.Session() as session:
                retrying(self._request, session)
        except _Interrupted as error:
            size = self._file.tell()
            remedy = (
                "The next run resumes the download"
                if self._pinned and size
                else "If this host cannot reach the server, download the image elsewhere and use its path"
            )
            raise ImageError(
                f"fetching {self._url} failed after {size} bytes and {_FRUITLESS_TRIES} attempts without progress: "
                f"{error}. {remedy}"
            ) from None
        return self._resumed

    def _sleep(self, seconds: float) -> None:
        self._report(f"interrupted at {self._file.tell() // 2**20} MiB; retrying in {seconds:.0f} s")
        time.sleep(seconds)

    def _request(self, session: requests.Session) -> None:
        """Read from the end of the file on; return when the server has no more."""
        import requests

        self._fruitless += 1
        if not self._version and not self._pinned:
            self._truncate()  # another version would go unnoticed
        start = self._file.tell()
        headers = {"Accept-Encoding": "identity"}  # ranges count bytes of the encoded content
        if start:
            headers["Range"] = f"bytes={start}-"
            if self._version and not self._pinned:  # mirrors of one file have different validators
                headers["If-Range"] = self._version
        try:
            with session.get(
                self._url, headers=headers, stream=True, timeout=(_CONNECT_SECONDS, _READ_SECONDS)
            ) as response:
                self._receive(response, start)
        except requests.exceptions.SSLError as error:
            raise ImageError(
                f"fetching {self._url} failed: {_cause(error)}. If a private authority signed its certificate, set "
                "REQUESTS_CA_BUNDLE to the file with that authority's certificate"
            ) from None
        except (
            requests.TooManyRedirects,
            requests.exceptions.InvalidURL,
            requests.exceptions.InvalidSchema,
        ) as error:
            raise ImageError(f"fetching {self._url} failed: {error}") from None
        except requests.RequestException as error:
            raise _Interrupted(_cause(error)) from None

    def _receive(self, response: requests.Response, start: int) -> None:
        import requests

        status = response.status_code
        if not self._pinned and any(urlsplit(each.url).scheme != "https" for each in (*response.history, response)):
            raise ImageError(
                f"fetching {self._url} failed: it redirects to {response.url} over http, which does not protect the "
                f"download. Add the digest: {self._url}#sha256=…"
            )
        if status in _TRANSIENT:
            raise _Interrupted(f"the server answered {status} {response.reason}")
        size, begins = _content_range(response)
        version = _validator(response)
        if status == _RANGE_NOT_SATISFIABLE and start:
            if size == start:
                self._resumed = True
                return
            begins = -1
        elif status not in {_OK, _PARTIAL}:
            raise ImageError(f"fetching {self._url} failed: the server answered {status} {response.reason}")
        other = not self._pinned and version and self._version and version != self._version
        if status != _OK and (begins != start or other):
            self._truncate()
            raise _Interrupted("the file changed on the server")
        if status == _OK:  # all of it, whatever range was requested
            self._truncate()
        self._resumed = self._file.tell() > 0
        self._version = version or self._version
        with contextlib.suppress(requests.exceptions.ChunkedEncodingError):  # raised for an incomplete response
            for data in response.iter_content(_CHUNK_BYTES):
                self._file.write(data)
                if self._file.tell() > self._furthest:
                    self._fruitless, self._furthest = 0, self._file.tell()
                self._report(bar(self._file.tell(), size))
            if size is None or self._file.tell() >= size:
                return
        raise _Interrupted(f"the connection was closed after {self._file.tell()} of {size or 'unknown'} bytes")

    def _truncate(self) -> None:
        self._file.seek(0)
        self._file.truncate()


def _content_range(response: requests.Response) -> tuple[int | None, int]:
    """Return the size of the whole file, if the server sends it, and the offset at which the response begins."""
    found = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", response.headers.get("Content-Range", ""))
    if response.status_code != _OK and found:
        return (None if found[2] == "*" else int(found[2])), int(found[1] or 0)
    length = response.headers.get("Content-Length", "")
    return (int(length) if length.isdigit() else None), 0


def _validator(response: requests.Response) -> str:
    """Return the validator of what the server has, for If-Range, which does not accept weak ones."""
    tag = str(response.headers.get("ETag", ""))
    return tag if tag and not tag.startswith("W/") else str(response.headers.get("Last-Modified", ""))


def _cause(error: BaseException) -> str:
    """Return the message of the innermost cause, without the wrappers of requests and urllib3."""
    while isinstance(inner := error.__cause__ or error.__context__ or getattr(error, "reason", None), BaseException):
        error = inner
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
