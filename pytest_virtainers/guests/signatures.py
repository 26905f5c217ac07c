"""OpenPGP signatures around or beside what distributors publish, checked with gpgv.

gpgv trusts each key in the keyring that it is given, and no other; it does not ask whether a key has expired or was
revoked (gpgv(1)).
"""

from __future__ import annotations

import shlex
import subprocess
import tempfile
from typing import TYPE_CHECKING

from pytest_virtainers.errors import ImageError

if TYPE_CHECKING:
    from pathlib import Path

_SECONDS = 60.0


def signed(file: Path, where: str, keyring: Path, signature: Path | None) -> bytes:
    """Give what in a file is signed by a key of `keyring`: all of it, or what its cleartext signature covers.

    Args:
        file: what was fetched.
        where: from where, for messages.
        keyring: public keys, in OpenPGP's binary format or GnuPG's keybox.
        signature: a detached one; None: it is in the file (RFC 9580, section 7).

    Raises:
        ImageError: no key of the keyring has signed it; no keyring is there, or no gpgv.
    """
    _check_keyring(keyring)
    with tempfile.TemporaryDirectory(prefix="virtainers-gpgv-") as home:
        command = ["gpgv", "--homedir", home, "--keyring", str(keyring)]
        command += ["--output", "-", "--", str(file)] if signature is None else ["--", str(signature), str(file)]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS, check=False
            )
        except FileNotFoundError:
            raise ImageError(
                f"the signature of {where} cannot be checked: gpgv is not installed (Debian: apt-get install gpgv)"
            ) from None
        except subprocess.TimeoutExpired:
            raise ImageError(
                f"the signature of {where} cannot be checked: gpgv did not end within {_SECONDS:.0f} s"
            ) from None
    if done.returncode != 0:
        said = " ".join(line.removeprefix("gpgv: ") for line in done.stderr.decode(errors="replace").splitlines())
        raise ImageError(f"{where} is not signed by a key in {keyring}, so it is not believed. gpgv says: {said}")
    return done.stdout if signature is None else file.read_bytes()


def _check_keyring(keyring: Path) -> None:
    try:
        with keyring.open("rb") as file:
            head = file.read(5)
    except OSError as error:
        raise ImageError(f"the keyring {keyring} cannot be read: {error.strerror}") from None
    if head == b"-----":
        raise ImageError(
            f"the keyring {keyring} is armored, which gpgv does not read; this makes one that it does: "
            f"gpg --dearmor <{shlex.quote(str(keyring))} >{shlex.quote(keyring.with_suffix('.gpg').name)}"
        )
