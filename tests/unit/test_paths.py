import errno
import os
from pathlib import Path

import filelock
import pytest

from pytest_virtainers import paths
from pytest_virtainers.errors import SpecError


def refused() -> str:
    with pytest.raises(SpecError) as caught:
        paths.locked("sweep")
    return str(caught.value)


def test_the_folder_is_private_and_under_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert paths.cache_folder() == tmp_path / ".cache/pytest-virtainers"
    assert paths.cache_folder().stat().st_mode & 0o777 == 0o700


def test_a_home_that_cannot_be_written_is_refused_in_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert refused() == (
        "the locks against other processes of this user have no place: "
        f"[Errno {errno.ENOTDIR}] Not a directory: '{tmp_path}/file/pytest-virtainers'. "
        "Set XDG_CACHE_HOME to a folder that this user can write and that all runs share"
    )


def test_a_user_without_a_home_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert "Could not determine home directory" in refused()


def test_a_lock_that_cannot_be_written_is_refused_in_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    assert "Read-only file system" in refused()
