"""The cloud-init seed of one VM: a NoCloud ISO with user-data, meta-data and network-config.

Format: https://docs.cloud-init.io/en/latest/reference/datasources/nocloud.html
"""

from __future__ import annotations

import base64
import hashlib
import io
import struct
from typing import TYPE_CHECKING, Any

import pycdlib
import yaml
from pycdlib.pycdlibexception import PyCdlibException

from pytest_virtainers.errors import SpecError
from pytest_virtainers.support.runtime_modules import protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Set
    from pathlib import Path

    from pytest_virtainers.config.spec import Spec
    from pytest_virtainers.ssh.keys import Keys


_CLOUD_CONFIG = "#cloud-config"

# Larger files are files of the seed: YAML is slow, cloud-init keeps several copies, and clouds have limits.
_MOST_BYTES_IN_USER_DATA = 64 * 1024
# Does what cloud-init's `write_files` does, with files of the seed. Arguments: a name there, a path, and so on.
_COPY_FILES = """
set -eu
umask 022
seed=$(mktemp -d)
mount -o ro "$(blkid -L cidata || findfs LABEL=cidata || echo /dev/disk/by-label/cidata)" "$seed"
while [ $# -gt 0 ]; do
    mkdir -p "${2%/*}/"
    cat "$seed/$1" >"$2"
    chown 0:0 "$2"
    chmod 644 "$2"
    ! command -v restorecon >/dev/null || restorecon "$2"
    shift 2
done
umount "$seed"
rmdir "$seed"
"""


def iso(spec: Spec, keys: Keys, user: str, instance_id: str) -> bytes:
    """Return the seed for `spec`: `user` may log in with `keys.login`, and the guest's host key is `keys.host`.

    cloud-init takes new keys only with a new instance id. It begins with the one in `spec.meta_data`, if there is
    one.
    """
    if "instance-id" in spec.meta_data:
        instance_id = f"{spec.meta_data['instance-id']}-{instance_id}"
    meta = {"local-hostname": spec.guest_hostname, **spec.meta_data, "instance-id": instance_id}
    texts = {
        "user-data": f"{_CLOUD_CONFIG}\n" + yaml.safe_dump(user_data(spec, keys, user), sort_keys=False),
        "meta-data": yaml.safe_dump(meta),
        "network-config": yaml.safe_dump(NETWORK_CONFIG),
    }
    files = {name: text.encode() for name, text in texts.items()}
    if _is_much(spec.files):
        files |= {_name(number): content for number, content in enumerate(spec.files.values())}
    image = pycdlib.PyCdlib()
    image.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident="cidata")
    for number, (name, content) in enumerate(files.items()):
        image.add_fp(
            io.BytesIO(content), len(content), iso_path=f"/SEED{number}.;1", rr_name=name, joliet_path=f"/{name}"
        )
    written = io.BytesIO()
    image.write_fp(written)
    image.close()
    return written.getvalue()


def instance_id(keys: Keys) -> str:
    """Return the instance id of the VM that is booted with these keys; no other VM has them."""
    return f"virtainers-{hashlib.sha256(keys.host.public.encode()).hexdigest()[:8]}"


def unpack(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Return the content of a seed as marker arguments, and the names of its files that are ignored.

    Raises:
        SpecError: it cannot be read, is not a seed, or has user-data to which no key can be added.
    """
    texts, others = _texts(path, {"user-data", "meta-data"})
    if "user-data" not in texts:
        raise SpecError(f"{path} is not a seed: it has no user-data, but {', '.join(others) or 'no files'}")
    first = texts["user-data"].partition("\n")[0].rstrip()
    if first != _CLOUD_CONFIG:
        raise SpecError(f"{path}: its user-data begins with {first!r}; our key can be added to {_CLOUD_CONFIG} only")
    read = {name: _mapping(texts.get(name, ""), f"{path}: its {name}") for name in ("user-data", "meta-data")}
    return {name.replace("-", "_"): value for name, value in read.items()}, others


def _mapping(text: str, whose: str) -> dict[str, Any]:
    try:
        found = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise SpecError(f"{whose} is not what cloud-init reads: {error}") from None
    if not isinstance(found, dict):
        raise SpecError(f"{whose} is not what cloud-init reads: it is a {type(found).__name__}, not a mapping")
    return found


def _texts(path: Path, names: Set[str]) -> tuple[dict[str, str], list[str]]:
    """Read these files in the top folder of an ISO image, if they exist; also return the names of the others."""
    image = pycdlib.PyCdlib()
    try:
        with path.open("rb") as file:
            image.open_fp(file)
            tree = "rr_path" if image.has_rock_ridge() else "joliet_path" if image.has_joliet() else "iso_path"
            there = next(image.walk(**{tree: "/"}))[2]
            found = {}
            for name in names & set(there):
                content = io.BytesIO()
                image.get_file_from_iso_fp(content, **{tree: f"/{name}"})
                found[name] = content.getvalue().decode()
            image.close()
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {error.strerror}") from None
    # pycdlib reports damage in many ways.
    except (PyCdlibException, struct.error, ValueError, LookupError) as error:
        raise SpecError(f"{path} is not an ISO image of texts: {error}") from None
    return found, sorted(set(there) - names)


def user_data(spec: Spec, keys: Keys, user: str) -> dict[str, Any]:
    """Return the marker's cloud-config with the plugin's additions; lists are extended, never replaced."""
    config = dict(spec.user_data)
    account = {
        "name": user,
        "sudo": "ALL=(ALL) NOPASSWD:ALL",
        "shell": "/bin/bash",
        "lock_passwd": True,
        "ssh_authorized_keys": [keys.login.public, *spec.authorized_keys],
    }
    _extend(config, "users", [account])
    _extend(config, "packages", spec.packages)
    if _is_much(spec.files):
        _extend(config, "bootcmd", [_copy_files(spec.files)])
        if present := config.get("write_files"):  # cloud-init would write these later, and ours have to come last
            config["write_files"] = [each for each in present if each.get("path") not in spec.files]
    else:
        _extend(config, "write_files", [_write_file(path, content) for path, content in spec.files.items()])
    _extend(config, "runcmd", spec.run_commands)
    # With these, cloud-init generates no host keys, which also saves time.
    config["ssh_keys"] = {"ed25519_private": keys.host.private, "ed25519_public": keys.host.public}
    config.setdefault("ssh_pwauth", False)
    return config


# The NIC that every guest has, by its MAC address in the supervisor. cloud-init needs the name, too: some of its
# renderers identify an interface by nothing else.
NETWORK_CONFIG: Mapping[str, object] = {
    "version": 2,
    "ethernets": {
        "eth0": {
            "match": {"macaddress": protocol.GUEST_MAC},
            "set-name": "eth0",
            "dhcp4": True,
            # The supervisor's DHCP names a search domain in which other VMs are found by their short names.
            # (cloud-init's schema requires a string.) The guest's own name is in the meta-data.
            "dhcp4-overrides": {"use-domains": "true", "use-hostname": False},
        }
    },
}


def _extend(config: dict[str, Any], key: str, more: Any) -> None:
    if more:
        present = config.get(key) or []
        config[key] = [*(present if isinstance(present, list) else [present]), *more]


def _write_file(path: str, content: bytes) -> dict[str, str]:
    return {"path": path, "encoding": "b64", "content": base64.b64encode(content).decode()}


def _is_much(files: Mapping[str, bytes]) -> bool:
    return sum(map(len, files.values())) > _MOST_BYTES_IN_USER_DATA


def _name(number: int) -> str:
    return f"file-{number}"


def _copy_files(files: Mapping[str, bytes]) -> list[str]:
    """Return the command that copies files from the seed: once for each instance, just before `write_files`."""
    pairs = ((_name(number), path) for number, path in enumerate(files))
    once = ["cloud-init-per", "instance", "virtainers-files"]
    return [*once, "sh", "-c", _COPY_FILES, "sh", *(word for pair in pairs for word in pair)]
