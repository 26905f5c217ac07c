"""Copying a flat disk out of a container."""

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_virtainers.errors import EngineError
from pytest_virtainers.guests.flat_disk import receive


@pytest.mark.parametrize("fails", [False, True])
def test_receive_does_not_follow_planted_links(fails: bool, tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("untouched")
    for each in ("flat.qcow2", "flat.qcow2.part"):
        (tmp_path / each).symlink_to("victim")

    def fetch(_path: str, target: Path) -> None:
        target.write_bytes(b"disk")
        if fails:
            raise EngineError("the connection broke")

    container: Any = SimpleNamespace(fetch=fetch)
    with pytest.raises(EngineError, match="connection broke") if fails else contextlib.nullcontext():
        receive(container, "/mounted/flat.qcow2", tmp_path / "flat.qcow2")
    assert (tmp_path / "victim").read_text() == "untouched"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["flat.qcow2", "flat.qcow2.part", "victim"]
    assert (tmp_path / "flat.qcow2").is_symlink() == fails
