"""Shapes that test files share, as each shape costs a boot on each engine."""

from pytest_virtainers import Arguments
from pytest_virtainers.config.settings import resolve
from pytest_virtainers.config.spec import Spec, check, merge

SMALL: Arguments = {"ram": "512M", "disk": "3G", "cpus": 2}  # two: the template boots faster
LARGE = bytes(range(256)) * 4096  # more than fits into user-data
OFFLINE: Arguments = {
    "ram": "640M",
    "cpus": 2,
    "disk": "20G",
    "user": "alice",
    "internet": False,
    "user_data": {
        "hostname": "by-user-data",
        "timezone": "Europe/Berlin",
        "users": [{"name": "bob", "shell": "/bin/bash"}],
    },
}
"""A shape without internet, and the plain shape below `FULL`."""
FULL: Arguments = {
    **OFFLINE,
    "files": {"/etc/motd.d/note": b"\xffhi", "/srv/a b/c": "text", "/srv/large": LARGE},
    "run_commands": ["echo $((6*7)) $(id -un) $(stat -c '%s %a %U' /srv/large) >/srv/ran", ["touch", "/srv/a file"]],
}
"""All that a marker can request without another image, also for a VM without internet."""


def spec(name: str, **arguments: object) -> Spec:
    """Return the spec of a small VM with these arguments."""
    return merge(resolve([]).shape, check({**SMALL, "name": name, **arguments}, "here"))
