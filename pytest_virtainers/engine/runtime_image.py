"""The runtime image: built once from `images/runtime/`, and found again by the content of that folder."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

from pytest_virtainers.engine import build_context, ownership, scratch, tar
from pytest_virtainers.errors import ImageError
from pytest_virtainers.support.paths import locked

if TYPE_CHECKING:
    from pytest_virtainers.engine.base import Engine
    from pytest_virtainers.support.progress import Progress

_REPOSITORY = "localhost/virtainers/runtime"
_OFFICIAL_BASE = "docker.io/library/debian:trixie-slim"
_OWN_BASE = "localhost/virtainers/base:trixie"
_LINES_SHOWN = 20


def reference() -> str:
    """Return name and tag of the runtime image that belongs to this version of the code."""
    return f"{_REPOSITORY}:{build_context.digest('runtime')}"


def present(engine: Engine) -> bool:
    """Return whether the engine has the runtime image."""
    return engine.image(reference()) is not None


def image_id(engine: Engine, image: str) -> str:
    """Return the engine's id of `image`, which must be there; raise `ImageError`."""
    if (found := engine.image(image)) is None:
        raise ImageError(f"{engine} no longer has the image {image}: it was removed during this run")
    return found.id


def ensure(engine: Engine, progress: Progress) -> str:
    """Build the runtime image unless the engine has it; return its reference.

    Raises:
        ImageError: the build failed; the message has its last lines.
    """
    if not present(engine):
        with progress.step("waiting for another process, which builds the runtime image") as step:
            lock = locked("runtime-image", step.update)
        with lock:
            if not present(engine):  # another process may have built it in the meantime
                build(engine, progress)
    return reference()


def build(engine: Engine, progress: Progress) -> str:
    """Build the runtime image; return its reference. Errors are those of `ensure`."""
    base = _ensure_base(engine, progress)
    with progress.step(f"building the runtime image for {engine.kind}") as step:
        try:
            engine.build(
                build_context.archive("runtime") + tar.END,
                tag=reference(),
                arguments={"BASE": base},
                labels={ownership.LABEL: "image"},
                on_line=step.update,
            )
        except ImageError as error:
            raise ImageError(
                f"{error}\nThe build installs Debian packages: check that containers reach a package mirror."
            ) from None
    return reference()


def _ensure_base(engine: Engine, progress: Progress) -> str:
    """Pull Debian's official image, or make the same from Debian's packages where no registry answers."""
    for base in (_OFFICIAL_BASE, _OWN_BASE):
        if engine.image(base) is not None:
            progress.note(f"the runtime image's base is {base}, which the engine has")
            return base
    with progress.step(f"pulling {_OFFICIAL_BASE}") as step:
        refusal = engine.pull(_OFFICIAL_BASE, step.update)
    if engine.image(_OFFICIAL_BASE) is not None:
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
            "it from Debian's packages, is not installed. Install it (apt-get install mmdebstrap), or load that "
            "image into the engine (docker load)."
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
        engine.import_image(tarball, _OWN_BASE)
