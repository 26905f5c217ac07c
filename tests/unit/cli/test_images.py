"""`virtainers build`: the VM whose images and template it creates."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_virtainers import cli
from pytest_virtainers.config.arguments import ARGUMENTS
from pytest_virtainers.config.spec import Spec
from pytest_virtainers.guests.images import GuestImage
from pytest_virtainers.launching import build as module


class FakeLauncher:
    """A launcher that records the specs of `warm`."""

    made: list[Spec]
    engine = "docker"

    def __init__(self, *_: object) -> None:
        pass

    def __enter__(self) -> "FakeLauncher":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def warm(self, spec: Spec) -> None:
        self.made.append(spec)

    @property
    def guests(self) -> Any:
        return SimpleNamespace(of=lambda _spec: GuestImage("debian-13-abc", "debian", "0" * 64))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Spec]:
    FakeLauncher.made = []
    monkeypatch.setattr(module, "build_launcher", FakeLauncher)
    return FakeLauncher.made


def test_build_accepts_the_options_of_run(
    made: list[Spec], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "user-data"
    data.write_text("#cloud-config\ntimezone: UTC\n")
    words = ["--ram", "2G", "--cpus", "3", "--disk", "20G", "--package", "nginx", "--package", "curl"]
    more = ["--user", "alice", "--user-data", str(data), "--internet", "off", "--env", "OS_VARIANT=win10"]
    assert cli.main(["build", "debian-12", *words, *more]) == 0
    (spec,) = made
    assert (spec.image, spec.ram, spec.cpus, spec.disk, spec.user) == ("debian-12", 2048, 3, 20480, "alice")
    assert (spec.packages, spec.user_data) == (("nginx", "curl"), {"timezone": "UTC"})
    assert (spec.internet, spec.env, spec.template) == (False, {"OS_VARIANT": "win10"}, True)
    shown = f"debian-12 is ready on docker: debian-13-abc, sha256 {'0' * 64}, with its template\n"
    assert capsys.readouterr().out == shown


def test_cold_creates_only_the_images(made: list[Spec], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["build", "--cold"]) == 0
    assert not made[0].template
    assert "template" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"), [(["--ram", "lots"], "--ram lots: a size is a number of MiB"), (["--env", "x"], "NAME=VALUE")]
)
def test_invalid_options_are_reported_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    monkeypatch.setattr(module, "build_launcher", SimpleNamespace)
    assert cli.main(["build", *words]) == 2
    assert said in capsys.readouterr().err


def test_build_has_every_option_of_run_that_affects_a_template() -> None:
    commands: Any = cli.virtainers.commands
    of_run = {each.name for each in commands["run"].params}
    of_build = {each.name for each in commands["build"].params}
    others = {"name", "hostname", "network", "ip", "nics", "identity", "reach", "persist", "vnc", "detach"}
    assert of_run - others - {"auto_remove"} == of_build
    assert {each.name for each in ARGUMENTS.values() if each.shapes_template and each.command_line} <= of_build
