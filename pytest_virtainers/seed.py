"""The cloud-init seed of one VM: a NoCloud ISO with user-data, meta-data and network-config.

Format: https://docs.cloud-init.io/en/latest/reference/datasources/nocloud.html
"""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import pycdlib
import yaml

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_virtainers.keys import Keys
    from pytest_virtainers.spec import Spec


def iso(spec: Spec, keys: Keys, user: str, instance_id: str) -> bytes:
    """Make the seed for `spec`: `user` may log in with `keys.login`, the guest shows `keys.host`.

    By another instance id than before, cloud-init knows that these keys are new.
    """
    files = {
        "user-data": "#cloud-config\n" + yaml.safe_dump(user_data(spec, keys, user), sort_keys=False),
        "meta-data": yaml.safe_dump(
            {"instance-id": instance_id, "local-hostname": spec.guest_hostname, **spec.meta_data}
        ),
        "network-config": yaml.safe_dump(NETWORK_CONFIG),
    }
    image = pycdlib.PyCdlib()
    image.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident="cidata")
    for number, (name, content) in enumerate(files.items()):
        data = content.encode()
        image.add_fp(io.BytesIO(data), len(data), iso_path=f"/SEED{number}.;1", rr_name=name, joliet_path=f"/{name}")
    written = io.BytesIO()
    image.write_fp(written)
    image.close()
    return written.getvalue()


def user_data(spec: Spec, keys: Keys, user: str) -> dict[str, Any]:
    """Give the marker's cloud-config with what the plugin needs added; lists are extended, never replaced."""
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
    _extend(config, "write_files", [_write_file(path, content) for path, content in spec.files.items()])
    _extend(config, "runcmd", spec.run_commands)
    # With these given, cloud-init makes no host keys of its own; that also saves the time.
    config["ssh_keys"] = {"ed25519_private": keys.host.private, "ed25519_public": keys.host.public}
    config.setdefault("ssh_pwauth", False)
    return config


# The one NIC that every guest has, by the MAC address that the supervisor gives it. cloud-init needs the name too:
# some of its renderers know an interface by nothing else.
NETWORK_CONFIG: Mapping[str, object] = {
    "version": 2,
    "ethernets": {
        "eth0": {
            "match": {"macaddress": "52:54:00:76:69:02"},
            "set-name": "eth0",
            "dhcp4": True,
            # The supervisor's DHCP names a search domain in which the other VMs are found by their short names.
            # (cloud-init's schema wants a string.) The guest's own name is in the meta-data.
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
