"""Key pairs of one VM, for the login and for the guest's host key, generated for each VM."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import paramiko
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from paramiko import PKey


@dataclass(frozen=True)
class KeyPair:
    """An ed25519 key pair: the private key as an OpenSSH PEM, the public key as one `authorized_keys` line."""

    private: str
    public: str

    @classmethod
    def generate(cls) -> KeyPair:
        """Generate a new pair."""
        key = Ed25519PrivateKey.generate()
        return cls(_private(key), _public(key.public_key()))

    def paramiko(self) -> PKey:
        """Return the pair as a paramiko key."""
        return paramiko.Ed25519Key(file_obj=io.StringIO(self.private))

    def public_key(self) -> PKey:
        """Return the public key as a paramiko key; the private key may be missing."""
        return paramiko.Ed25519Key(data=base64.b64decode(self.public.split()[1]))


@dataclass(frozen=True)
class Keys:
    """The pairs of one VM."""

    login: KeyPair
    host: KeyPair

    @classmethod
    def generate(cls) -> Keys:
        """Generate both pairs."""
        return cls(KeyPair.generate(), KeyPair.generate())


def private_pem(value: object) -> str:
    """Return an ed25519 private key, parsed from an OpenSSH PEM without passphrase."""
    try:
        key = serialization.load_ssh_private_key(_text(value), None)
    except (TypeError, ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError(  # noqa: TRY004  (one error type for all parsers)
            "expected an ed25519 private key in OpenSSH format without passphrase"
        )
    return _private(key)


def public_line(value: object) -> str:
    """Return an ed25519 public key, parsed from a line of `authorized_keys`, without its comment."""
    text = _text(value)
    try:
        key = serialization.load_ssh_public_key(text) if len(text.splitlines()) == 1 else None
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError("expected one line with an ed25519 public key: ssh-ed25519 AAAA…")  # noqa: TRY004
    return _public(key)


def _text(value: object) -> bytes:
    return value.encode(errors="replace") if isinstance(value, str) else b""


def _private(key: Ed25519PrivateKey) -> str:
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH
    return key.private_bytes(encoding, form, serialization.NoEncryption()).decode()


def _public(key: Ed25519PublicKey) -> str:
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
