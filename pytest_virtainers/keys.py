"""Key pairs of one VM: the one we log in with, and the one by which we know the guest. Made anew for each VM."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import paramiko
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from paramiko import PKey


@dataclass(frozen=True)
class KeyPair:
    """An ed25519 key pair: the private key as an OpenSSH PEM, the public key as one `authorized_keys` line."""

    private: str
    public: str

    @classmethod
    def generate(cls) -> KeyPair:
        """Make a new pair."""
        key = Ed25519PrivateKey.generate()
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        )
        public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        return cls(private.decode(), public.decode())

    def paramiko(self) -> PKey:
        """Give the pair as paramiko's object."""
        return paramiko.Ed25519Key(file_obj=io.StringIO(self.private))

    def public_key(self) -> PKey:
        """Give the public half as paramiko's object; the private one may be missing."""
        return paramiko.Ed25519Key(data=base64.b64decode(self.public.split()[1]))


@dataclass(frozen=True)
class Keys:
    """The pairs of one VM."""

    login: KeyPair
    host: KeyPair

    @classmethod
    def generate(cls) -> Keys:
        """Make both pairs."""
        return cls(KeyPair.generate(), KeyPair.generate())
