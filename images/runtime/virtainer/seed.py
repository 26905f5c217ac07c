"""The cloud-init seed: an ISO labelled `cidata` (NoCloud), made from one of five sources.

1. `/tmp/cloud_init.iso`: a ready ISO, used as it is.
2. `/tmp/user-data` with `/tmp/meta-data`.
3. `/tmp/user-data` alone, or 4. `/tmp/id_rsa.pub` alone (user-data that admits this key for the image's default
   user): meta-data is the default. `/tmp/meta-data` may accompany the key, too.
5. None of them: the default user's password is `password`, and SSH accepts it.

`/tmp/network-config` may accompany 2 to 5. The meaning of each file:
https://docs.cloud-init.io/en/latest/reference/datasources/nocloud.html
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from virtainer.events import note
from virtainer.exit_reasons import End, Reason
from virtainer.protocol import SEED_ISO, SEEDS
from virtainer.tools import ToolError, run

META_DATA = "instance-id: localimage-01\nlocal-hostname: cloudimage\n"
WITH_PASSWORD = "#cloud-config\npassword: password\nchpasswd: {expire: false}\nssh_pwauth: true\n"  # noqa: S105


class Seed(NamedTuple):
    """The seed for cloud-init: a ready ISO, or the files of one to be written."""

    how: str
    ready: Path | None = None
    files: tuple[tuple[str, str], ...] = ()


def plan(sources: Path) -> Seed:
    """Choose the source by the files that exist."""
    ready = sources / SEED_ISO
    if _read(ready, 1) is not None:
        return Seed("ready ISO", ready=ready)
    user_data, key = _text(sources / "user-data"), _text(sources / "id_rsa.pub")
    if user_data is not None:
        how = "user-data" if key is None else "user-data (id_rsa.pub is not used: name the key in user-data)"
    elif key is not None:
        how, user_data = "id_rsa.pub", _admit(sources / "id_rsa.pub", key)
    else:
        how, user_data = "password", WITH_PASSWORD
    meta_data = _text(sources / "meta-data")
    files = [("user-data", user_data), ("meta-data", META_DATA if meta_data is None else meta_data)]
    if (network := _text(sources / "network-config")) is not None:
        files.append(("network-config", network))
    return Seed(how, files=tuple(files))


def prepare(iso: Path, scratch: Path, sources: Path = Path(SEEDS)) -> Path:
    """Write the seed to `iso`, or return the ready one."""
    seed = plan(sources)
    note(f"seed: {seed.how}")
    if seed.how == "password":
        note("WARNING: no SSH key and no user-data: anyone can log in with the password `password`")
        note("WARNING: pass a key: docker run -v ~/.ssh/id_rsa.pub:/tmp/id_rsa.pub:ro …")
    if seed.ready:
        return seed.ready
    import shutil  # takes 2 ms, and clones do not need it

    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    for name, text in seed.files:
        (scratch / name).write_text(text)
    try:
        run("genisoimage", "-quiet", "-o", str(iso), "-V", "cidata", "-J", "-r", str(scratch))
    except ToolError as error:
        raise End(Reason.SEED, f"cannot write the seed to CLOUD_INIT_DISK {iso}: {error}") from None
    return iso


def _admit(path: Path, key: str) -> str:
    keys = [line.strip() for line in key.splitlines() if line.strip() and not line.startswith("#")]
    if "PRIVATE KEY" in key:
        raise End(Reason.SEED, f"{path} is a private key: mount the public one (…/id_rsa.pub)")
    if not keys or any(len(line.split()) < 2 for line in keys):  # noqa: PLR2004
        raise End(
            Reason.SEED, f"{path} is not an SSH public key: expected a line such as `ssh-ed25519 AAAA… me@host`"
        )
    # JSON is YAML in which no key can break out of its quotes.
    return f"#cloud-config\nssh_authorized_keys: {json.dumps(keys)}\n"


def _text(path: Path) -> str | None:
    data = _read(path)
    try:
        return None if data is None else data.decode()
    except UnicodeDecodeError:
        raise End(Reason.SEED, f"{path} is not UTF-8 text") from None


def _read(path: Path, length: int = -1) -> bytes | None:
    """Return the file's first bytes (-1: all of them), or None when there is no such file."""
    try:
        with path.open("rb") as file:
            data = file.read(length)
    except FileNotFoundError:
        return None
    except IsADirectoryError:
        raise End(
            Reason.SEED,
            f"{path} is a directory: docker makes one when the path given to -v does not exist on the host",
        ) from None
    except OSError as error:
        raise End(
            Reason.SEED,
            f"{path} cannot be read: {error.strerror}. Without DAC_OVERRIDE the container's root needs the "
            "read bit too: chmod a+r the file on the host",
        ) from None
    if not data:
        raise End(Reason.SEED, f"{path} is empty")
    return data
