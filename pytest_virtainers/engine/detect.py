"""Find the engine: the order is Docker's own choice, Docker's sockets, Podman's, and last a Podman of our own."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import docker.errors
from docker.context import ContextAPI
from docker.utils import kwargs_from_env

from pytest_virtainers.engine.docker.engine import Engine, explain
from pytest_virtainers.engine.docker.podman_service import PodmanService
from pytest_virtainers.errors import EngineError, EngineNotFound

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from docker.context import Context
    from docker.tls import TLSConfig

_MEND = {
    "auto": "apt-get install podman   (or: docker.io; then start dockerd)",
    "docker": "systemctl start docker   (without systemd: dockerd &; not installed: apt-get install docker.io)",
    "podman": "apt-get install podman",
}


@dataclass(frozen=True)
class Candidate:
    """A place where an engine may answer; `chosen` means that the user named it, so nothing else will do."""

    url: str
    origin: str
    chosen: bool = False


def find(choice: str, environ: Mapping[str, str] = os.environ) -> Engine:
    """Connect to the engine that `choice` (auto, docker, podman or a URL) means.

    Raises:
        EngineNotFound: nothing answered; the message lists all that was tried.
    """
    tried = []
    for candidate in candidates(choice, environ):
        try:
            return Engine(candidate.url, tls=_tls(candidate.url, environ))
        except (docker.errors.DockerException, OSError, ValueError) as error:
            tried.append(f"  {candidate.origin}, {candidate.url}: {_reason(error)}")
            if candidate.chosen:
                break
    else:
        if choice in ("auto", "podman"):
            podman = shutil.which("podman", path=environ.get("PATH"))
            if podman is None:
                tried.append("  a Podman of our own: no podman on PATH")
            else:
                try:
                    return _own_podman(podman)
                except (EngineError, docker.errors.DockerException, OSError) as error:
                    tried.append(f"  a Podman of our own: {_reason(error)}")
    mend = _MEND.get(choice, "start the engine at that URL, or choose another one with --virtainer-engine")
    raise EngineNotFound(
        f"no container engine answered (engine={choice}). Tried:\n" + "\n".join(tried) + f"\nTo mend it: {mend}"
    )


def _own_podman(podman: str) -> Engine:
    service = PodmanService(podman)
    try:
        return Engine(service.url, service)
    except BaseException:
        service.stop()
        raise


def candidates(choice: str, environ: Mapping[str, str]) -> Iterator[Candidate]:
    """Give the places to try for `choice`, the first one first."""
    if choice not in ("auto", "docker", "podman"):
        yield Candidate(choice, "the engine setting", chosen=True)
        return
    runtime_folder = _runtime_folder(environ)
    if choice in ("auto", "docker"):
        yield from _docker_choice(environ)
        yield Candidate("unix:///var/run/docker.sock", "Docker's socket")
        yield Candidate(f"unix://{runtime_folder}/docker.sock", "rootless Docker's socket")
        yield Candidate(f"unix://{Path.home()}/.docker/run/docker.sock", "Docker Desktop's socket")
    if choice in ("auto", "podman"):
        if environ.get("CONTAINER_HOST"):
            yield Candidate(environ["CONTAINER_HOST"], "CONTAINER_HOST", chosen=choice == "podman")
        yield Candidate("unix:///run/podman/podman.sock", "Podman's socket")
        yield Candidate(f"unix://{runtime_folder}/podman/podman.sock", "rootless Podman's socket")


def command_line(engine: Engine) -> list[str]:
    """Give the words of a shell line that reach this engine: its command, with its URL unless that goes by itself.

    `DOCKER_HOST` and `CONTAINER_HOST` may be others in the shell where somebody types it; a context of Docker's is
    the same, and has TLS settings that a URL has not.
    """
    if engine.kind == "podman":
        folder = "/run" if os.getuid() == 0 else _runtime_folder(os.environ)
        usual = engine.url == f"unix://{folder}/podman/podman.sock" and not os.environ.get("CONTAINER_HOST")
        return ["podman", *([] if usual else ["--url", engine.url])]
    context = _context()
    host = context.Host if context is not None and context.Host else "unix:///var/run/docker.sock"
    usual = engine.url == host and not os.environ.get("DOCKER_HOST")
    return ["docker", *([] if usual else ["-H", engine.url])]


def _runtime_folder(environ: Mapping[str, str]) -> str:
    """Return `XDG_RUNTIME_DIR` if it is this user's: a socket in someone else's folder is not this user's engine."""
    usual = f"/run/user/{os.getuid()}"
    chosen = environ.get("XDG_RUNTIME_DIR") or usual
    with contextlib.suppress(OSError):
        if Path(chosen).stat().st_uid != os.geteuid():
            return usual
    return chosen


def _docker_choice(environ: Mapping[str, str]) -> Iterator[Candidate]:
    """Follow `DOCKER_HOST`, or else the current context of Docker's command line."""
    if environ.get("DOCKER_HOST"):
        yield Candidate(environ["DOCKER_HOST"], "DOCKER_HOST", chosen=True)
        return
    context = _context()
    if context is not None and context.Host:
        yield Candidate(context.Host, f"Docker's context {context.name!r}", chosen=True)


def _context() -> Context | None:
    """Give the current context of Docker's command line, unless it is the default one."""
    try:
        context = ContextAPI.get_current_context()
    except (docker.errors.DockerException, OSError, ValueError):
        return None
    return None if context is None or context.name == "default" else context


def _tls(url: str, environ: Mapping[str, str]) -> TLSConfig | None:
    """Give Docker's TLS settings for `url`: the current context's if that is its URL, or else the environment's.

    It takes no more than the URL, so a child process that gets one from us finds the same settings.
    """
    if not url.startswith(("tcp://", "https://")):
        return None
    context = None if environ.get("DOCKER_HOST") else _context()
    if context is not None and context.Host == url:
        return context.TLSConfig
    return kwargs_from_env(environ).get("tls")


def _reason(error: Exception) -> str:
    """Boil down what the SDK and its HTTP library wrap around an operating system's error."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        inner = [part for part in cause.args if isinstance(part, BaseException)]
        cause = inner[0] if inner else cause.__cause__ or cause.__context__
    return explain(error)
