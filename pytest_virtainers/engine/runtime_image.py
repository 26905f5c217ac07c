"""The runtime image on the engine: built once from `images/runtime/`, found again by the content of that folder."""

from __future__ import annotations

import io
import shutil
import subprocess
from typing import TYPE_CHECKING

import docker.errors

from pytest_virtainers.engine import build_context, ownership, scratch
from pytest_virtainers.errors import ImageError
from pytest_virtainers.support.paths import locked

if TYPE_CHECKING:
    from pytest_virtainers.engine.docker.engine import Engine
    from pytest_virtainers.support.progress import Progress

_REPOSITORY = "localhost/virtainers/runtime"
_OFFICIAL_BASE = "docker.io/library/debian:trixie-slim"
_OWN_BASE = "localhost/virtainers/base:trixie"
_LINES_SHOWN = 20


def reference() -> str:
    """Give the name and tag of the runtime image that belongs to this version of the code."""
    return f"{_REPOSITORY}:{build_context.digest('runtime')}"


def ensure(engine: Engine, progress: Progress) -> str:
    """Build the runtime image unless the engine has it; give its reference.

    Raises:
        ImageError: the build failed; the message has its last lines.
    """
    wanted = reference()
    if not present(engine, wanted):
        with progress.step("waiting for another process, which builds the runtime image") as step:
            lock = locked("runtime-image", step.update)
        with lock:
            if not present(engine, wanted):  # another process may have built it meanwhile
                build(engine, progress)
    return wanted


def build(engine: Engine, progress: Progress) -> str:
    """Build the runtime image; give its reference; raises as `ensure` does."""
    base = _ensure_base(engine, progress)
    wanted = reference()
    lines: list[str] = []
    with progress.step(f"building the runtime image for {engine.kind}") as step:
        with engine.failures("building the runtime image"):
            events = engine.api.build(
                fileobj=io.BytesIO(build_context.archive("runtime")),
                custom_context=True,
                tag=wanted,
                buildargs={"BASE": base},
                labels={ownership.LABEL: "image"},
                rm=True,
                forcerm=True,
                decode=True,
            )
            for event in events:
                lines += str(event.get("stream") or event.get("error") or "").splitlines()
                step.update(lines[-1] if lines else "")
        if not present(engine, wanted):
            raise ImageError(
                f"building the runtime image failed on {engine}. The build's last lines:\n"
                + "\n".join(f"  | {line}" for line in lines[-_LINES_SHOWN:])
                + "\nThe build installs Debian packages: check that containers reach a package mirror."
            )
    return wanted


def present(engine: Engine, image: str) -> bool:
    """Tell whether the engine has `image`."""
    with engine.failures(f"looking for image {image}"):
        try:
            engine.api.inspect_image(image)  # type: ignore[no-untyped-call]
        except docker.errors.ImageNotFound:
            return False
    return True


def _ensure_base(engine: Engine, progress: Progress) -> str:
    """Pull Debian's official image, or make the same from Debian's packages where no registry answers."""
    for base in (_OFFICIAL_BASE, _OWN_BASE):
        if present(engine, base):
            progress.note(f"the runtime image's base is {base}, which the engine has")
            return base
    with progress.step(f"pulling {_OFFICIAL_BASE}") as step:
        refusal = engine.pull(_OFFICIAL_BASE, step.update)
    if present(engine, _OFFICIAL_BASE):
        progress.note(f"the runtime image's base is {_OFFICIAL_BASE}, pulled from its registry")
        return _OFFICIAL_BASE
    progress.note(f"no container registry answers ({refusal[-160:]}); making the base from Debian's packages")
    _make_base(engine, progress)
    return _OWN_BASE


def _make_base(engine: Engine, progress: Progress) -> None:
    mmdebstrap = shutil.which("mmdebstrap")
    if mmdebstrap is None:
        raise ImageError(
            f"the runtime image needs a base: {_OFFICIAL_BASE} could not be pulled, and mmdebstrap, which can make "
            "it from Debian's packages, is not installed. To mend it: apt-get install mmdebstrap, or load that image "
            "into the engine (docker load)."
        )
    with (
        progress.step("making the runtime image's base from Debian's packages") as step,
        scratch.Folder("base") as folder,
    ):
        tarball = f"{folder}/base.tar"
        command = [mmdebstrap, "--variant=minbase", "trixie", tarball]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            lines = []
            for line in process.stdout or ():
                lines.append(line.rstrip())
                step.update(lines[-1])
        if process.returncode != 0:
            raise ImageError(
                f"{' '.join(command[:3])} failed (exit code {process.returncode}):\n"
                + "\n".join(f"  | {line}" for line in lines[-_LINES_SHOWN:])
            )
        with engine.failures("importing the base image"):
            engine.api.import_image(src=tarball, repository=_OWN_BASE)  # with its tag: Podman 4.3 ignores `tag`
