"""What programs that are no tests may ask for, and `virtainers run`."""

import pytest

from pytest_virtainers import SpecError, cli, launch
from pytest_virtainers.settings import resolve
from pytest_virtainers.standalone import spec


def test_a_spec_has_the_settings_under_what_was_asked_for() -> None:
    made = spec(resolve([]), {"image": None, "name": "db", "ram": "2G", "packages": ["nginx"]}, "launch")
    assert (made.name, made.ram, made.image, made.packages) == ("db", 2048, resolve([]).shape["image"], ("nginx",))


@pytest.mark.parametrize("name", ["scope", "reset"])
def test_what_says_how_tests_share_a_vm_is_refused(name: str) -> None:
    with pytest.raises(SpecError, match=f"^launch: {name} says how tests share a VM; here it ends with the block"):
        spec(resolve([]), {name: "module"}, "launch")


def test_an_unknown_argument_is_told_before_an_engine_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIRTAINER_ENGINE", "/nowhere")
    with pytest.raises(SpecError, match=r"^launch: unknown argument 'memory'"):
        launch(memory="1G").__enter__()


def test_run_refuses_a_wrong_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "debian-13", "--ram", "much"]) == 1
    assert "virtainers: virtainers run: ram='much': " in capsys.readouterr().err


def test_a_command_for_the_vm_where_none_runs_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["doctor", "--", "uname"])
    assert ended.value.code == 2
    assert "-- begins a command for the VM; this one runs none" in capsys.readouterr().err
