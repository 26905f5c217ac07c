"""Errors of the docker SDK, explained for users."""

from __future__ import annotations

import docker.errors
import requests.exceptions
import urllib3.exceptions

# The last two: an engine that goes away during a pull or a build.
FAILURES = (
    docker.errors.DockerException,
    requests.exceptions.RequestException,
    OSError,
    urllib3.exceptions.HTTPError,
    docker.errors.StreamParseError,
)
"""What the SDK raises."""

_SUBNET_TAKEN = "Another network has these addresses: choose another subnet."
_ADDRESS_TAKEN = "Another container has this address: ask for another one (ip)."
_NO_PARENT = (
    "Check that the engine's host has this interface (ip -brief link), and correct parent if not. "
    "A rootless engine does not see the host's interfaces."
)
# A part of an engine's message in lower case, and the remedy.
_REMEDIES = (
    (
        "error setting rlimit",
        "Podman asked for more open files or processes than this host allows. Put this into "
        "/etc/containers/containers.conf and restart Podman's service:\n"
        '  [containers]\n  default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]',
    ),
    (
        "cgroups in hybrid mode not supported",
        "crun cannot use this host's cgroups. Install runc and start Podman's service with it: "
        "podman --runtime runc system service …",
    ),
    (
        "client_cert param",
        "DOCKER_TLS_VERIFY or DOCKER_CERT_PATH asks for TLS. Put ca.pem, cert.pem and key.pem into the folder "
        "DOCKER_CERT_PATH (else ~/.docker), or unset both.",
    ),
    # Networks: Docker's message, then Podman's.
    ("failed to allocate gateway", _SUBNET_TAKEN),
    ("already used on the host", _SUBNET_TAKEN),
    ("address already in use", _ADDRESS_TAKEN),
    ("is already allocated", _ADDRESS_TAKEN),
    ("invalid subinterface", _NO_PARENT),
    ("parent interface", _NO_PARENT),
    ("netlink error: no such device", _NO_PARENT),
    (
        "/dev/net/tun",
        "The engine's host must have this device (modprobe tun), and a rootless engine's user must be allowed to "
        "open it (chmod 666 /dev/net/tun, the default of most distributions).",
    ),
    ("no space left on device", "The engine's disk is full: free some space (docker system df) and try again."),
    ("read-only file system", "The engine cannot write there: choose another place with --virtainer-store."),
    ("permission denied", "Run as a user who may use this engine (for Docker: a member of the group docker)."),
)


def message(error: Exception) -> str:
    """Return the engine's own message, without what the SDK and its HTTP library add."""
    return str(getattr(error, "explanation", None) or error).strip()


def explain(error: Exception) -> str:
    """Return the engine's message and, if it is a known one, its remedy."""
    said = message(error)
    return next((f"{said}\n{remedy}" for sign, remedy in _REMEDIES if sign in said.lower()), said)


def reason(error: Exception) -> str:
    """Return why there is no connection: the operating system's error inside those of the SDK, or `explain`."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        inner = [part for part in cause.args if isinstance(part, BaseException)]
        cause = inner[0] if inner else cause.__cause__ or cause.__context__
    return explain(error)
