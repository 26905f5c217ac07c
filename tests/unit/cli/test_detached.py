"""Commands for detached VMs: their arguments, and what they print."""

import time

import pytest

from pytest_virtainers import cli
from pytest_virtainers.cli import detached


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("web:/srv/x", ("web", "/srv/x")),
        ("web:", ("web", ".")),
        ("./web:x", None),
        ("/srv/web", None),
        ("web", None),
        (":x", None),
    ],
)
def test_a_path_in_a_vm_starts_with_its_name(path: str, parts: tuple[str, str] | None) -> None:
    assert detached.split_path(path) == parts


@pytest.mark.parametrize(("ago", "age"), [(0, "0 s"), (59, "59 s"), (61, "1 min"), (7300, "2 h"), (200000, "2 d")])
def test_an_age_has_the_largest_unit_that_fits(ago: int, age: str) -> None:
    assert detached.age(int(time.time()) - ago) == age


def test_special_files_are_an_option_of_what_comes_from_a_vm(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["cp", "--special", "./dist", "web:/srv"]) == 2
    assert "--special is only for copies from a VM" in capsys.readouterr().err
