"""Settings that Docker and Podman read for their own command lines: contexts, TLS, sockets."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import docker.errors
from docker.context import ContextAPI
from docker.utils import kwargs_from_env

if TYPE_CHECKING:
    from collections.abc import Mapping

    from docker.context import Context
    from docker.tls import TLSConfig


def current() -> tuple[str, str] | None:
    """Return name and URL of the current context of Docker's command line, unless it is the default one."""
    context = _current()
    return None if context is None or not context.Host else (str(context.name), str(context.Host))


def tls(url: str, environ: Mapping[str, str]) -> TLSConfig | None:
    """Return Docker's TLS settings for `url`: those of the current context if it has this URL, or the environment's.

    They depend on the URL alone, so a child process that receives it finds the same settings.
    """
    if not url.startswith(("tcp://", "https://")):
        return None
    context = None if environ.get("DOCKER_HOST") else _current()
    if context is not None and context.Host == url:
        return context.TLSConfig
    return kwargs_from_env(environ).get("tls")


def command_line(kind: str, url: str) -> list[str]:
    """Return the command with which a shell reaches an engine, with its URL unless that is the command's default.

    `DOCKER_HOST` and `CONTAINER_HOST` may be different in the user's shell. A context of Docker is the same there,
    and has TLS settings that a URL lacks.
    """
    if kind == "podman":
        folder = "/run" if os.getuid() == 0 else runtime_folder(os.environ)
        is_default = url == f"unix://{folder}/podman/podman.sock" and not os.environ.get("CONTAINER_HOST")
        return ["podman", *([] if is_default else ["--url", url])]
    _, default = current() or ("", "unix:///var/run/docker.sock")
    is_default = url == default and not os.environ.get("DOCKER_HOST")
    return ["docker", *([] if is_default else ["-H", url])]


def runtime_folder(environ: Mapping[str, str]) -> str:
    """Return `XDG_RUNTIME_DIR` if it is this user's: a socket in another user's folder is not this user's engine."""
    usual = f"/run/user/{os.getuid()}"
    chosen = environ.get("XDG_RUNTIME_DIR") or usual
    with contextlib.suppress(OSError):
        if Path(chosen).stat().st_uid != os.geteuid():
            return usual
    return chosen


def _current() -> Context | None:
    try:
        context = ContextAPI.get_current_context()
    except (docker.errors.DockerException, OSError, ValueError):
        return None
    return None if context is None or context.name == "default" else context
