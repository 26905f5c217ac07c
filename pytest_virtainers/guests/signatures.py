"""Verify OpenPGP signatures of published digests with gpgv.

gpgv trusts every key in the given keyring and no other; it does not check whether a key has expired or was
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
    """Return the signed content of a file: all of it, or the text inside its cleartext signature.

    Args:
        file: the downloaded file.
        where: its URL, for messages.
        keyring: file with public keys, in OpenPGP's binary format or GnuPG's keybox.
        signature: file with a detached signature; `None` expects a cleartext signature (RFC 9580, section 7).

    Raises:
        ImageError: no key of the keyring signed the file; or there is no keyring or no gpgv.
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
                f"cannot check the signature of {where}: gpgv is not installed (Debian: apt-get install gpgv)"
            ) from None
        except subprocess.TimeoutExpired:
            raise ImageError(
                f"cannot check the signature of {where}: gpgv did not end within {_SECONDS:.0f} s"
            ) from None
    if done.returncode != 0:
        output = " ".join(line.removeprefix("gpgv: ") for line in done.stderr.decode(errors="replace").splitlines())
        raise ImageError(f"{where} is not signed by a key in {keyring}. Output of gpgv: {output}")
    return done.stdout if signature is None else file.read_bytes()


def _check_keyring(keyring: Path) -> None:
    try:
        with keyring.open("rb") as file:
            head = file.read(5)
    except OSError as error:
        raise ImageError(f"cannot read the keyring {keyring}: {error.strerror}") from None
    if head == b"-----":
        raise ImageError(
            f"the keyring {keyring} is armored, which gpgv cannot read. Convert it: "
            f"gpg --dearmor <{shlex.quote(str(keyring))} >{shlex.quote(keyring.with_suffix('.gpg').name)}"
        )
