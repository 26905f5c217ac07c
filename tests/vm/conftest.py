"""Fixtures of the tests in real VMs: the engine of the run (`VIRTAINER_ENGINE`), its images and its command line."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_virtainers.config.settings import Settings, environment, resolve
from pytest_virtainers.engine.docker.engine import DockerEngine
from pytest_virtainers.engine.docker.podman_service import runtime_options
from pytest_virtainers.guests.images import GuestImage
from pytest_virtainers.launching.build import build_launcher
from pytest_virtainers.launching.launcher import Launcher
from pytest_virtainers.support.progress import Progress
from tests.vm.parts import part_of

_HERE = Path(__file__).parent
_QUICKSTART = _HERE.parent.parent / "examples" / "quickstart"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--part", metavar="N/M", help="of the tests marked thorough, run the N-th of M parts")


@pytest.hookimpl(tryfirst=True)  # parts do not depend on -m and -k
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(_HERE):
            item.add_marker(pytest.mark.real_vm)
        if item.path.is_relative_to(_QUICKSTART):
            item.add_marker(pytest.mark.each_engine)
    # The tests of this file mostly wait. At the end of a run, no other file would be left for the processors.
    items.sort(key=lambda item: item.path != _HERE / "test_warm.py")
    if part := config.getoption("part"):
        chosen = part_of([item for item in items if item.get_closest_marker("thorough")], part)
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Accept that a part may have no test that `-m` selects."""
    if session.config.getoption("part") and session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
        session.exitstatus = pytest.ExitCode.OK


@pytest.fixture(scope="session")
def settings() -> Settings:
    return resolve([environment(os.environ)])


@pytest.fixture(scope="session")
def launcher(settings: Settings) -> Iterator[Launcher]:
    """Return another launcher than the plugin's, for tests that look at the engine from outside."""

    def write(text: str) -> None:
        sys.__stderr__.write(text)  # type: ignore[union-attr]

    with build_launcher(settings, Progress(write, live=False)) as launcher:
        yield launcher


@pytest.fixture(scope="session")
def engine(launcher: Launcher) -> DockerEngine:
    assert isinstance(launcher.engine, DockerEngine)
    return launcher.engine


@pytest.fixture(scope="session")
def runtime_image(launcher: Launcher) -> str:
    return launcher.runtime_image.reference()


@pytest.fixture(scope="session")
def guest_image(launcher: Launcher, settings: Settings) -> GuestImage:
    """Return the default guest image, made before any time limit of a test begins: that takes minutes."""
    return launcher.guests.get(settings.shape["image"])


@pytest.fixture(scope="session")
def engine_cli(engine: DockerEngine) -> list[str]:
    """Return the engine's own command line, as a user would call it on this host."""
    cli = ["podman", *runtime_options()] if engine.kind == "podman" else ["docker"]
    assert shutil.which(cli[0]), f"{cli[0]} is not installed; the contract is tested through it"
    return cli


@pytest.fixture(scope="session")
def guest_disk(
    launcher: Launcher,
    guest_image: GuestImage,
    engine_cli: list[str],
    settings: Settings,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Return the disk of the default guest image as a file on this host."""
    disk = tmp_path_factory.mktemp("guest") / "disk.qcow2"
    with disk.open("wb") as file:
        subprocess.run(
            [
                *(*engine_cli, "run", "--rm", "--ulimit", "nofile=1024", "--ulimit", "nproc=4096"),
                *("--network", "none", "-v", f"{settings.store}:/store:ro", "--entrypoint", "cat"),
                *(launcher.runtime_image.reference(), guest_image.disk),
            ],
            stdout=file,
            check=True,
        )
    return disk
