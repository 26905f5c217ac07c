import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pytest_virtainers.errors import SpecError
from pytest_virtainers.store.locks import SharedLocks
from pytest_virtainers.support import paths


def refused() -> str:
    with pytest.raises(SpecError) as caught:
        paths.locked("sweep")
    return str(caught.value)


def test_the_cache_folder_is_private(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert paths.cache_folder() == tmp_path / ".cache/pytest-virtainers"
    assert paths.cache_folder().stat().st_mode & 0o777 == 0o700


def test_an_unwritable_home_folder_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert refused() == (
        f"cannot create locks: [Errno {errno.ENOTDIR}] Not a directory: '{tmp_path}/file/pytest-virtainers'. "
        "Set XDG_CACHE_HOME to a folder that this user can write to and that all runs share"
    )


def test_a_user_without_home_folder_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert "Could not determine home directory" in refused()


def test_an_unwritable_lock_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for module, name in ((fcntl, "flock"), (os, "open")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, refuse)
            assert "Read-only file system" in refused()


HOLDER = """
import sys
from pytest_virtainers.support.paths import locked

with locked("store"):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_locked_waits_for_another_process_and_reports_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    reports: list[float] = []
    with subprocess.Popen([sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout
        assert other.stdout.readline() == b"locked\n"
        began = time.monotonic()
        threading.Timer(2.5, other.kill).start()
        with paths.locked("another"):
            assert time.monotonic() - began < 2.5, "no process has this one"
        with paths.locked("store", lambda: reports.append(time.monotonic())):
            waited = time.monotonic() - began
            assert waited > 2.5
    assert 5 <= len(reports) <= 20 * waited + 1, "on each attempt"
    with paths.locked("store"):
        pass


def test_an_interrupted_wait_closes_its_descriptor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with paths.locked("store"):
        before = os.listdir("/proc/self/fd")  # noqa: PTH208
        with pytest.raises(KeyboardInterrupt):
            paths.locked("store", interrupt)
        assert os.listdir("/proc/self/fd") == before  # noqa: PTH208


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "pytest-virtainers"


REMEDY = (
    "another user could replace the locks and downloads in it. Fix that, or set XDG_CACHE_HOME to a folder of this"
)


def test_a_cache_folder_of_another_user_is_refused(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared.mkdir(mode=0o700)
    owner = shared.stat().st_uid
    user = owner + 1
    monkeypatch.setattr(os, "geteuid", lambda: user)
    why = f"it belongs to user {owner}, and this is user {user} (chown {user}, or remove it)"
    assert refused().startswith(f"{shared}: {why}: {REMEDY}")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change the owner")
def test_a_cache_folder_with_another_owner_is_refused(shared: Path) -> None:
    shared.mkdir(mode=0o700)
    os.chown(shared, 12345, -1)
    assert "it belongs to user 12345, and this is user 0 (chown 0, or remove it)" in refused()


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o1777])
def test_a_cache_folder_writable_by_others_is_refused(shared: Path, mode: int) -> None:
    shared.mkdir()
    shared.chmod(mode)
    assert refused().startswith(f"{shared}: its mode {mode:04o} lets others write to it (chmod 700): {REMEDY}")
    shared.chmod(0o755)
    paths.locked("sweep").close()


def test_a_link_in_place_of_the_cache_folder_is_refused(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    shared.symlink_to(tmp_path / "elsewhere")
    assert refused().startswith(f"{shared}: it is a symbolic link (remove it): {REMEDY}")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_link_in_place_of_a_lock_is_not_followed(shared: Path, tmp_path: Path) -> None:
    shared.mkdir(mode=0o700)
    (tmp_path / "precious").write_text("unchanged")
    (shared / "sweep.lock").symlink_to(tmp_path / "precious")
    assert "Too many levels of symbolic links" in refused()
    (shared / "thing.held").symlink_to(tmp_path / "precious")
    with SharedLocks() as holds, pytest.raises(OSError, match="symbolic links"):
        holds.add("thing")
    assert (tmp_path / "precious").read_text() == "unchanged"
