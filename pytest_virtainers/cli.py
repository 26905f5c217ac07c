"""The command `virtainers`: prepare images, and say what this machine has."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from pytest_virtainers.errors import VirtainerError
from pytest_virtainers.progress import Progress
from pytest_virtainers.settings import environment, resolve

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_virtainers.settings import Settings

_FAILED = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; give 0 when it did what was asked, 1 when it failed (2 is argparse's: wrong usage)."""
    parser = argparse.ArgumentParser(
        prog="virtainers",
        description="Disposable virtual machines in containers. Settings come from VIRTAINER_X in the environment, "
        "for example VIRTAINER_ENGINE=podman.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    build = commands.add_parser("build", help="build the runtime image and a guest image, if they are not there")
    build.add_argument("image", nargs="?", default=None, help="catalogue name (default: the image setting)")
    build.set_defaults(run=_build)
    doctor = commands.add_parser("doctor", help="say what this machine has, and what to mend")
    doctor.set_defaults(run=_doctor)
    parsed = parser.parse_args(arguments)
    try:
        run: int = parsed.run(parsed, resolve([environment(os.environ)]))
    except VirtainerError as error:
        print(f"virtainers: {error}", file=sys.stderr)
        return _FAILED
    except KeyboardInterrupt:
        return 130
    return run


def _build(parsed: argparse.Namespace, settings: Settings) -> int:
    from pytest_virtainers.manager import Manager

    image = parsed.image or settings.shape["image"]
    with Manager(settings, _progress()) as manager:
        guest = manager.guest(image)
        print(f"{image} is ready on {manager.engine}: {guest.key}, sha256 {guest.digest}")
    return 0


def _doctor(_parsed: argparse.Namespace, settings: Settings) -> int:
    from pytest_virtainers import doctor

    findings = doctor.examine(settings)
    for finding in findings:
        print(finding)
    return _FAILED if any(finding.fatal for finding in findings) else 0


def _progress() -> Progress:
    def write(text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()

    return Progress(write, live=sys.stderr.isatty())
