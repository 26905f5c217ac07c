"""Find the container engine: the configured Docker, Docker's sockets, Podman's, or a private Podman service."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_virtainers.engine.docker import contexts
from pytest_virtainers.engine.docker.engine import DockerEngine
from pytest_virtainers.engine.docker.podman_service import PodmanService
from pytest_virtainers.errors import EngineError, EngineNotFound

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pytest_virtainers.engine.base import Engine

_REMEDIES = {
    "auto": "apt-get install podman   (or: docker.io; then start dockerd)",
    "docker": "systemctl start docker   (without systemd: dockerd &; not installed: apt-get install docker.io)",
    "podman": "apt-get install podman",
}


@dataclass(frozen=True)
class Candidate:
    """A place where an engine may answer; `chosen` means that the user named it, so no other place is tried."""

    url: str
    origin: str
    chosen: bool = False


def find(choice: str, environ: Mapping[str, str] = os.environ) -> Engine:
    """Connect to the engine that `choice` (auto, docker, podman or a URL) means.

    Raises:
        EngineNotFound: nothing answered; the message lists everything that was tried.
    """
    tried = []
    for candidate in candidates(choice, environ):
        try:
            return DockerEngine(candidate.url, environ)
        except EngineError as error:
            tried.append(f"  {candidate.origin}, {candidate.url}: {error}")
            if candidate.chosen:
                break
    else:
        if choice in ("auto", "podman"):
            try:
                return _private_podman(environ)
            except EngineError as error:
                tried.append(f"  a private Podman service: {error}")
    remedy = _REMEDIES.get(choice, "start the engine at that URL, or choose another one with --virtainer-engine")
    raise EngineNotFound(
        f"no container engine answered (engine={choice}). Tried:\n" + "\n".join(tried) + f"\nRemedy: {remedy}"
    )


def _private_podman(environ: Mapping[str, str]) -> Engine:
    podman = shutil.which("podman", path=environ.get("PATH"))
    if podman is None:
        raise EngineError("no podman on PATH")
    service = PodmanService(podman)
    try:
        return DockerEngine(service.url, environ, service)
    except BaseException:
        service.stop()
        raise


def candidates(choice: str, environ: Mapping[str, str]) -> Iterator[Candidate]:
    """Yield the places to try for `choice`, in order."""
    if choice not in ("auto", "docker", "podman"):
        yield Candidate(choice, "the engine setting", chosen=True)
        return
    runtime_folder = contexts.runtime_folder(environ)
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


def _docker_choice(environ: Mapping[str, str]) -> Iterator[Candidate]:
    """Follow `DOCKER_HOST`, or else the current context of Docker's command line."""
    if environ.get("DOCKER_HOST"):
        yield Candidate(environ["DOCKER_HOST"], "DOCKER_HOST", chosen=True)
    elif (context := contexts.current()) is not None:
        name, url = context
        yield Candidate(url, f"Docker's context {name!r}", chosen=True)
