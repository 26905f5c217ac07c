"""Files and trees to and from a guest, as tar streams of the guest's `tar`.

Names follow `cp -a SOURCE DEST`: into DEST when that is a folder (or ends with `/`), as DEST otherwise. Everything
is unpacked in a folder next to its place and then renamed, so a broken transfer leaves no half-written file. In the
guest this requires root; what arrives there belongs to the owner of the folder that it is put into, unless an owner
is given. The local `tar` packs what is sent; what a guest sends never reaches it (see `receive`).
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import posixpath
import stat
import subprocess
import tempfile
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple, Protocol

from pytest_virtainers.errors import RootCommandTimeout, TransferError, VirtainerError
from pytest_virtainers.vm import install, receive
from pytest_virtainers.vm.limited import Limited, TooMuch
from pytest_virtainers.vm.shown import shown
from pytest_virtainers.vm.tar_stream import BrokenStream, TarStream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_MISSING = 44
_LINES = 20
_MAX_REPORT = 64 * 1024
_MOMENT_SECONDS = 1.0

# First of two scripts: unpacks, and prints where, and the final path. To tar, a stream that breaks between two files
# looks complete, and so does one whose sender could not read some files: so nothing is installed before the sender
# confirms.
_UNPACK = """
set -eu
dest=$1 name=$2
case $dest in */) mkdir -p -- "$dest" ;; esac
if [ -d "$dest" ]; then dest=${dest%/}/$name; fi
case $dest in */*) folder=${dest%/*}/ ;; *) folder=. ;; esac
mkdir -p -- "$folder"
stage=$(mktemp -d "$folder/.virtainer.XXXXXX")
trap 'rm -rf -- "$stage"' EXIT
printf '%s\\0' "$stage" "$dest"
tar -x -p -o -f - -C "$stage"
trap - EXIT
"""

_INSTALL = """
set -eu
stage=$1 dest=$2 name=$3 owner=$4
trap 'rm -rf -- "$stage"' EXIT
chown -hR -- "${owner:-$(stat -c %u:%g -- "${stage%/*}/")}" "$stage/$name"
if [ -d "$dest" ] && [ -d "$stage/$name" ] && [ ! -L "$stage/$name" ]; then
    cp -a -- "$stage/$name/." "$dest/"
else
    mv -f -T -- "$stage/$name" "$dest"
fi
"""

# Twice, because the tar of a broken transfer may still unpack what has arrived.
_DROP = 'rm -rf -- "$1" 2>/dev/null || { sleep 1; rm -rf -- "$1"; }'
_DROP_SECONDS = 10.0

_SEND = f"""
set -eu
cd -- "$1" 2>/dev/null || exit {_MISSING}
[ -e "$2" ] || [ -L "$2" ] || exit {_MISSING}
code=0 gnu=
case $(tar --version 2>/dev/null) in *GNU*) gnu=yes ;; esac
tar -c ${{gnu:+-S}} -f - -- "$2" || code=$?
# GNU tar ends with 1 when a file has changed while it was read, as logs do: what it read is good. With other tars, 1
# is a failure.
[ $code != 1 ] || [ -z "$gnu" ] || code=0
exit $code
"""

_WRITE = """
set -eu
path=$1 mode=$2 owner=$3 size=$4
if [ -L "$path" ]; then path=$(readlink -f -- "$path"); fi
case $path in */*) folder=${path%/*}/ ;; *) folder=. ;; esac
mkdir -p -- "$folder"
stage=$(mktemp "$folder/.virtainer.XXXXXX")
trap 'rm -f -- "$stage"' EXIT
cat >"$stage"
arrived=$(stat -c %s -- "$stage")
if [ "$arrived" != "$size" ]; then echo "only $arrived of $size bytes have arrived" >&2; exit 1; fi
if [ -e "$path" ]; then like=$path mode=${mode:-$(stat -c %a -- "$path")}; else like=$folder mode=${mode:-644}; fi
chown -- "${owner:-$(stat -c %u:%g -- "$like")}" "$stage"
chmod -- "$mode" "$stage"
mv -f -T -- "$stage" "$path"
"""

_READ = f'[ -e "$1" ] || exit {_MISSING}; exec cat -- "$1"'


class RootShell(Protocol):
    """Runs a script as root in the guest; returns exit code and standard error."""

    def __call__(
        self, script: list[str], *, stdin: IO[bytes] | None, stdout: Callable[[bytes], object], timeout: float | None
    ) -> tuple[int, str]:
        """Run `script`, a list of words, with the given streams, within `timeout` seconds."""


def put(shell: RootShell, source: Path, dest: str, owner: str | None, timeout: float | None) -> str:
    """Copy a local file or tree into the guest; return its path there.

    Raises:
        FileNotFoundError: `source` is not there.
        TransferError: the local or the guest's side failed; the message has its words.
    """
    if not os.path.lexists(source):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(source))
    whole = source if source.is_symlink() else source.resolve()  # gives `.` and `..` a name
    action, output = f"copying {source} to {dest} in the guest", Limited(_MAX_REPORT)
    end = None if timeout is None else time.monotonic() + timeout
    try:
        sparse = ["-S"] if "GNU" in _local_tar() and _has_holes(whole) and _guest_unpacks(shell, timeout) else []
        tar = _LocalTar(["-c", *sparse, "-f", "-", "-C", str(whole.parent), "--", whole.name])
        with tar as process:
            code, said = shell(
                _script(_UNPACK, dest, whole.name), stdin=process.stdout, stdout=output, timeout=timeout
            )
        _check(tar, code, action, said)
        stage, arrived = _places(bytes(output.data), action)
        left = None if end is None else max(_MOMENT_SECONDS, end - time.monotonic())
        code, said = shell(
            _script(_INSTALL, stage, arrived, whole.name, owner or ""), stdin=None, stdout=bytes, timeout=left
        )
        _check(tar, code, action, said)
    except TooMuch:
        raise TransferError(f"{action} failed in the guest: it printed more than {_MAX_REPORT} bytes") from None
    except Exception as error:
        stage = output.data.decode("utf-8", "surrogateescape").partition("\0")[0]
        if stage:
            with contextlib.suppress(VirtainerError):  # it must not hide the first error
                shell(_script(_DROP, stage), stdin=None, stdout=bytes, timeout=_DROP_SECONDS)
        if isinstance(error, RootCommandTimeout):
            raise TransferError(f"{action} failed: {error}") from None
        raise
    return arrived


class Received(NamedTuple):
    """What `get` has copied.

    Attributes:
        path: of the file or tree here.
        skipped: a line that says what was left out; empty if everything was copied.
    """

    path: Path
    skipped: str


def get(shell: RootShell, source: str, dest: str | Path, timeout: float | None, *, special: bool = False) -> Received:
    """Copy a file or tree of the guest to this machine.

    Args:
        shell: of the guest.
        source: path in the guest.
        dest: local path.
        timeout: seconds; `None`: no limit.
        special: copy FIFOs, devices and links that lead out of the tree, too, and keep setuid bits.

    Raises:
        FileNotFoundError: `source` is not there in the guest.
        TransferError: the local or the guest's side failed; the message has its words.
    """
    folder, name = posixpath.split(posixpath.normpath(source))
    action = f"copying {source} of the guest to {dest}"
    with (
        _failures(action, folder),
        _in_time(action),
        install.destination(dest, _bytes(name)) as (stage, place, place_name, path),
        contextlib.closing(receive.Arrival(stage, _bytes(name), special=special)) as arrival,
    ):
        stream = TarStream(arrival)
        code, said = shell(_script(_SEND, folder or ".", name), stdin=None, stdout=stream.feed, timeout=timeout)
        if code not in (0, _MISSING):
            raise TransferError(f"{action} failed in the guest (exit code {code}): {_shown(said)}")
        if code == 0:
            if not stream.whole or not arrival.count:
                raise BrokenStream("it ends early")
            arrival.finish()
            arrival.install(place, place_name)
    if code == _MISSING:
        raise FileNotFoundError(errno.ENOENT, "No such file in the guest", source)
    skipped = f"{arrival.report}; special=True (--special) keeps them" if arrival.report else ""
    return Received(path, skipped)


def read(shell: RootShell, path: str, timeout: float | None) -> bytes:
    """Return the content of a file of the guest; raises as `get` does."""
    content = bytearray()
    with _in_time(f"reading {path} in the guest"):
        code, said = shell(_script(_READ, path), stdin=None, stdout=content.extend, timeout=timeout)
    if code == _MISSING:
        raise FileNotFoundError(errno.ENOENT, "No such file in the guest", path)
    if code != 0:
        raise TransferError(f"reading {path} in the guest failed (exit code {code}): {_shown(said)}")
    return bytes(content)


def write(
    shell: RootShell, path: str, content: bytes, *, mode: int | None, owner: str | None, timeout: float | None
) -> None:
    """Write a file of the guest in one step; mode and owner stay as they were unless given (new: 0644)."""
    octal = "" if mode is None else f"{mode:o}"
    with _in_time(f"writing {path} in the guest"):
        code, said = shell(
            _script(_WRITE, path, octal, owner or "", str(len(content))),
            stdin=io.BytesIO(content),
            stdout=lambda _data: None,
            timeout=timeout,
        )
    if code != 0:
        raise TransferError(f"writing {path} in the guest failed (exit code {code}): {_shown(said)}")


@contextlib.contextmanager
def _in_time(action: str) -> Iterator[None]:
    """Turn a timeout into a `TransferError`."""
    try:
        yield
    except RootCommandTimeout as error:
        raise TransferError(f"{action} failed: {error}") from None


def _script(text: str, *arguments: str) -> list[str]:
    return ["sh", "-c", text, "sh", *arguments]


def _bytes(path: str) -> bytes:
    """Return a path as the guest has it."""
    return path.encode("utf-8", "surrogateescape")


def _shown(text: str) -> str:
    """Return the last lines of a guest's output, as they may be shown on a terminal."""
    return "\n".join(shown(_bytes(line)) for line in text.strip().splitlines()[-_LINES:])


@functools.cache
def _local_tar() -> str:
    """Return the version message of the local tar."""
    return subprocess.run(["tar", "--version"], capture_output=True, text=True, check=False).stdout


def _unpacks_holes(version: str) -> bool:
    """Return whether such a tar unpacks what GNU tar packs with `-S`; busybox leaves those files out."""
    return "GNU" in version or "bsdtar" in version


def _guest_unpacks(shell: RootShell, timeout: float | None) -> bool:
    version = Limited(_MAX_REPORT)
    shell(["tar", "--version"], stdin=None, stdout=version, timeout=timeout)
    return _unpacks_holes(version.data.decode(errors="replace"))


def _has_holes(source: Path) -> bool:
    """Return whether a file there uses less space than its length."""
    files = (Path(folder, name) for folder, _, names in os.walk(source) for name in names)
    for each in [source] if source.is_symlink() or not source.is_dir() else files:
        with contextlib.suppress(OSError):  # tar says what is wrong with it
            found = each.lstat()
            if stat.S_ISREG(found.st_mode) and found.st_blocks * 512 < found.st_size:
                return True
    return False


class _LocalTar:
    """The local tar, which packs what is sent; it runs during the block."""

    def __init__(self, arguments: list[str]) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (a pipe could fill up; closed in __exit__)
        environment = {**os.environ, "COPYFILE_DISABLE": "1", "LC_ALL": "C"}  # no AppleDouble files from a Mac
        self.process = subprocess.Popen(
            ["tar", *arguments], stdout=subprocess.PIPE, stderr=self._log, env=environment
        )

    def __enter__(self) -> subprocess.Popen[bytes]:
        return self.process

    def __exit__(self, failure: object, *_: object) -> None:
        if failure is not None:
            self.process.kill()
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.process.wait()
        self._log.seek(0)
        self.said = self._log.read().decode(errors="replace").strip()
        self._log.close()


@contextlib.contextmanager
def _failures(action: str, folder: str) -> Iterator[None]:
    """Turn an error on this side into a `TransferError`; `folder` is that of the source in the guest."""
    try:
        yield
    except OSError as error:
        raise TransferError(f"{action} failed here: {error}") from error
    except BrokenStream as error:
        raise TransferError(f"{action} failed: the guest's tar stream cannot be read: {error}") from error
    except receive.SourceIsLink as error:
        target = posixpath.normpath(posixpath.join(folder, os.fsdecode(error.target)))
        raise TransferError(
            f"{action} failed: {error}. Copy {_shown(target)} instead, "
            "or the link itself with special=True (--special)"
        ) from error
    except install.Refused as error:
        raise TransferError(f"{action} failed: {error}") from error


def _places(output: bytes, action: str) -> tuple[str, str]:
    """Parse the output of the first script: the folder into which it has unpacked, and the final path."""
    parts = output.decode("utf-8", "surrogateescape").split("\0")
    if len(parts) != 3 or parts[2]:  # noqa: PLR2004  (each ends with a zero byte)
        raise TransferError(f"{action} failed in the guest: it printed {_shown(output.decode(errors='replace'))}")
    return parts[0], parts[1]


def _check(tar: _LocalTar, code: int, action: str, said: str) -> None:
    if code != 0:
        raise TransferError(f"{action} failed in the guest (exit code {code}): {_shown(said)}")
    if tar.process.returncode != 0:
        raise TransferError(f"{action} failed here (tar exit code {tar.process.returncode}): {tar.said}")
