"""`launch`, and the commands of `virtainers`."""

import contextlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest

from pytest_virtainers import SpecError, cli, detached, launch
from pytest_virtainers import api as module
from pytest_virtainers.config.settings import resolve
from pytest_virtainers.config.spec import Spec


@pytest.fixture
def requested(monkeypatch: pytest.MonkeyPatch) -> list[Spec]:
    """Record the requested VMs, with a launcher that launches none."""
    specs: list[Spec] = []

    def take(spec: Spec) -> Any:
        specs.append(spec)
        access = SimpleNamespace(console_command="", ssh_command="echo ssh")
        return SimpleNamespace(name=spec.name, spec=spec, ip="", access=access)

    launchers: list[str] = []

    class FakeLauncher:
        is_ours = True

        def __init__(self, *_: object, **__: object) -> None:
            launchers.append("made")

        def __enter__(self) -> "FakeLauncher":
            return self

        def __exit__(self, *_: object) -> None:
            self.close()

        def launch(self, spec: Spec) -> Any:
            return take(spec)

        def reset(self) -> None:
            launchers.append("reset")

        def close(self) -> None:
            launchers.append("closed")

    monkeypatch.setattr(module, "build_launcher", FakeLauncher)
    monkeypatch.setattr(module, "idle_launcher", module.IdleLauncher())
    monkeypatch.setattr(module, "launchers", launchers, raising=False)
    return specs


@pytest.mark.usefixtures("requested")
def test_the_next_block_reuses_the_launcher_of_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    launchers: list[str] = module.launchers  # type: ignore[attr-defined]
    for _ in range(2):
        with launch():
            pass
    assert launchers == ["made", "reset", "reset"]
    monkeypatch.setenv("DOCKER_HOST", "unix:///elsewhere")
    with launch():
        pass
    assert launchers[3:] == ["closed", "made", "reset"], "the engine may be a different one"
    module.idle_launcher.close()
    assert launchers[6:] == ["closed"]


@pytest.mark.usefixtures("requested")
def test_blocks_at_the_same_time_share_nothing() -> None:
    launchers: list[str] = module.launchers  # type: ignore[attr-defined]
    with launch(), launch():
        assert launchers == ["made", "made"]
    assert launchers[2:] == ["reset", "reset", "closed"]


@pytest.mark.usefixtures("requested")
def test_nothing_is_reused_after_a_failure() -> None:
    launchers: list[str] = module.launchers  # type: ignore[attr-defined]
    with pytest.raises(LookupError), launch():
        raise LookupError
    assert launchers == ["made", "closed"]


def test_arguments_override_settings(requested: list[Spec], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIRTAINER_CPUS", "3")
    with launch(name="db", ram="2G", packages=["nginx"]) as vm:
        assert vm.name == "db"
    (spec,) = requested
    assert (spec.ram, spec.cpus, spec.image, spec.packages) == (2048, 3, resolve([]).shape["image"], ("nginx",))


@pytest.mark.parametrize("name", ["scope", "reset"])
def test_launch_refuses_scope_and_reset(name: str) -> None:
    arguments: dict[str, Any] = {name: "none"}
    with pytest.raises(SpecError, match=f"^launch: {name} says how tests share a VM; here it ends with the block"):
        launch(**arguments).__enter__()


def test_unknown_arguments_are_refused_before_the_engine_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIRTAINER_ENGINE", "/nowhere")
    with pytest.raises(SpecError, match=r"^launch: unknown argument 'memory'"):
        launch(memory="1G").__enter__()  # type: ignore[call-arg]


def test_run_launches_what_its_options_describe(
    requested: list[Spec], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config").write_text("#cloud-config\ntimezone: UTC\n")
    options = ["--cold", "--ram=2G", "--internet=off", "--package=a", "--package=b", f"--user-data={tmp_path}/config"]
    assert cli.main(["run", "debian-12", *options, "--", "sh", "-c", "echo $1", "-", "a  b"]) == 0
    (spec,) = requested
    assert (spec.image, spec.ram, spec.internet, spec.template) == ("debian-12", 2048, False, False)
    assert spec.packages == ("a", "b")
    assert "timezone" in str(spec.user_data)
    assert capfd.readouterr().out == "ssh sh -c 'echo $1' - 'a  b'\n"


def test_a_missing_ssh_client_is_reported_before_a_vm_starts(
    requested: list[Spec], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for command in (["run"], ["run", "--detach", "--", "true"], ["resume", str(tmp_path)]):
        assert cli.main(command) == 1
        assert capsys.readouterr().err == (
            "virtainers: ssh is not installed, and opens the shell in the VM. Install OpenSSH's client\n"
        )
    assert requested == []


def test_run_refuses_a_wrong_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "debian-13", "--ram", "much"]) == 2
    assert "Error: --ram much: a size is" in capsys.readouterr().err
    assert cli.main(["images", "build", "debian-13", "--arch", "vax"]) == 2
    assert "Error: --arch vax: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("doctor -- uname", "Got unexpected extra argument (uname)\n"),
        ("run debian-13 uname", "Got unexpected extra argument (uname); put a command for the VM after --"),
        ("run debian-13 uname -a", "-a; put a command for the VM after --"),
        ("exec web", "a command is missing: virtainers exec NAME -- COMMAND"),
        ("exec web --env A -- true", "--env A: NAME=VALUE is needed"),
        ("exec web --env 1=2 -- true", "'1' cannot name an environment variable"),
        ("cp here there", "one of SOURCE and DEST must be in a VM: NAME:PATH"),
        ("cp web:a db:b", "one of SOURCE and DEST must be in a VM: NAME:PATH"),
        ("store prune --limit much", "much: a size is a number of MiB"),
    ],
)
def test_a_command_in_the_wrong_place_is_wrong_usage(
    words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words.split()) == 2
    assert said in capsys.readouterr().err.replace("'-a'", "-a")  # click 8.4 puts it into quotes


def test_files_of_options_are_read_once(requested: list[Spec], tmp_path: Path) -> None:
    """A shell's `<(…)` can be read only once."""
    fifo = tmp_path / "user-data"
    os.mkfifo(fifo)
    with ThreadPoolExecutor() as pool:
        written = pool.submit(fifo.write_text, "timezone: UTC\n")
        assert cli.main(["run", "--user-data", str(fifo), "--", "true"]) == 0
        written.result()
    assert requested[0].user_data == {"timezone": "UTC"}


def test_the_password_is_not_passed_to_the_browser(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other users can read command lines."""
    page = "http://127.0.0.1:1/vnc.html#autoconnect=true&resize=scale&password=secret"
    screen = SimpleNamespace(novnc=lambda *, port: contextlib.nullcontext(page))
    vm = SimpleNamespace(screen=screen, machine=SimpleNamespace(exit_reason="it is a fake"))
    opened: list[str] = []
    monkeypatch.setattr(detached, "attached", lambda *_: contextlib.nullcontext(vm))
    monkeypatch.setattr(click, "launch", opened.append)
    assert cli.main(["vnc", "web", "--web", "--open"]) == 0
    assert opened == ["http://127.0.0.1:1/vnc.html#autoconnect=true&resize=scale"]


def test_the_catalogue_is_listed_without_an_engine(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VIRTAINER_ENGINE", "docker")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["images", "ls"]) == 0
    said = capsys.readouterr()
    assert said.err.startswith("virtainers: cannot list the store: no container engine answered")
    assert [line.split()[:3] for line in said.out.splitlines()[:2]] == [
        ["NAME", "ARCH", "USER"],
        ["debian-13", "amd64", "debian"],
    ]
    assert "\ncentos-7: its package mirrors were shut down: packages need vault.centos.org\n" in said.out
    assert cli.main(["images", "ls", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["centos-7"]["note"].startswith("its package mirrors were shut down")


def test_restore_of_a_vm_without_snapshots_names_the_remedy(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = SimpleNamespace(snapshots=list)
    monkeypatch.setattr(detached, "attached", lambda *_: contextlib.nullcontext(vm))
    assert cli.main(["restore", "web"]) == 1
    assert "web has no snapshot. To take one: virtainers snapshot web" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["-l", "web", "s1"], ["-d", "web"], ["-l", "-d", "web", "s1"]])
def test_a_tag_is_for_deleting_not_for_listing(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["snapshot", *words]) == 2
    assert "--delete requires a tag, and --list does not accept one" in capsys.readouterr().err
