"""Templates made from templates: which shapes need no boot of their own.

What can be done to a running VM (packages, commands, files, keys, `prepare`) is done to a copy of the plain template:
the template of the same shape without these. The copy has its own RAM and disk, so neither template needs the other
afterwards, and layers are never stacked.
"""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING

from pytest_virtainers.config.arguments import ARGUMENTS
from pytest_virtainers.errors import VirtainerError
from pytest_virtainers.guests.catalogue import is_own

if TYPE_CHECKING:
    from pytest_virtainers.config.spec import Spec

# At a boot, cloud-init does these before packages and commands; others may depend on those, or the other way round.
_EARLY = frozenset(
    {
        *("apt", "bootcmd", "ca-certs", "ca_certs", "chpasswd", "disable_root", "fqdn", "groups", "growpart"),
        *("hostname", "keyboard", "locale", "manage_etc_hosts", "mounts", "ntp", "password", "preserve_hostname"),
        *("resize_rootfs", "ssh_pwauth", "swap", "timezone", "users", "yum_repos", "zypper"),
    }
)
# At a boot, files are written before these are read: by services that start later, or by cloud-init for its users.
_READ_LATER = (
    *("/etc/adduser.conf", "/etc/chrony", "/etc/cloud/", "/etc/dbus-1/", "/etc/default/", "/etc/hostname"),
    *("/etc/lightdm/", "/etc/login.defs", "/etc/rsyslog", "/etc/skel/", "/etc/ssh/", "/etc/systemd/logind.conf"),
    *("/etc/X11/", "/etc/xdg/", "/var/lib/cloud/"),
)


class NotLayered(VirtainerError):
    """A template could not be made from its plain template, for a reason that a boot may not have."""


def plain(spec: Spec) -> Spec:
    """Return the shape whose template others are made from."""
    return spec.without([each.name for each in ARGUMENTS.values() if each.template == "layered"])


def is_layer(spec: Spec) -> bool:
    """Return whether the template of this shape can be made from its plain template with the outcome of a boot."""
    if spec == plain(spec):
        return False
    if (spec.packages or spec.run_commands or spec.files) and not spec.user_data.keys() <= _EARLY:
        return False
    # Services in a user's own image may read any file when they start.
    return not spec.files or (is_own(spec.image) and not any(_is_read_later(path) for path in spec.files))


def _is_read_later(path: str) -> bool:
    return posixpath.normpath(path).startswith(_READ_LATER)
