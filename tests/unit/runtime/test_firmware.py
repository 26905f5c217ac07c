"""Where UEFI's variables come from, and the errors when they are missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from virtainer import firmware
from virtainer.exit_reasons import End, Reason

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "none").write_bytes(b"defaults")
    monkeypatch.setattr(firmware, "NO_VARIABLES", tmp_path / "none")
    return tmp_path / "mounted" / "local_vars.fd"


def test_a_new_machine_has_the_defaults_and_then_its_own(own: Path) -> None:
    assert firmware.variables(own.parent, None) == own
    assert own.read_bytes() == b"defaults"
    own.write_bytes(b"mine")
    assert firmware.variables(own.parent, None).read_bytes() == b"mine"
    assert [each.name for each in own.parent.iterdir()] == [own.name]


def test_a_clone_starts_with_the_variables_of_its_template(own: Path, tmp_path: Path) -> None:
    template = tmp_path / "template"
    template.mkdir()
    firmware.path(template).write_bytes(b"its own")
    assert firmware.variables(own.parent, template).read_bytes() == b"its own"


def test_a_template_without_variables_is_incomplete(own: Path, tmp_path: Path) -> None:
    with pytest.raises(End) as refusal:
        firmware.variables(own.parent, tmp_path)
    assert refusal.value.reason is Reason.TEMPLATE
    assert str(refusal.value).endswith(f"the template {tmp_path} is incomplete: it has no local_vars.fd")


def test_a_file_that_cannot_be_opened_is_named(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firmware, "CODE", tmp_path / "none")
    with pytest.raises(End) as refusal:
        firmware.open_flash(own)
    assert str(refusal.value).endswith(f"UEFI needs {own}: No such file or directory")
