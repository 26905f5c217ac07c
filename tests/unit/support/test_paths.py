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


def test_a_lock_waits_for_the_process_that_has_it_and_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked: list[float] = []
    with subprocess.Popen([sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout
        assert other.stdout.readline() == b"locked\n"
        threading.Timer(1.2, other.kill).start()
        began = time.monotonic()
        with paths.locked("another"):
            assert time.monotonic() - began < 0.5, "no process has this one"
        with paths.locked("store", lambda: asked.append(time.monotonic())):
            assert time.monotonic() - began > 1
    assert 1 <= len(asked) <= 3, "about twice a second"
    with paths.locked("store"):
        pass


def test_an_interrupted_wait_leaves_no_descriptor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
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


MEND = (
    "someone else could replace the locks and downloads in it. Mend that, or set XDG_CACHE_HOME to a folder of this"
)


def test_a_cache_folder_of_another_user_is_refused(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared.mkdir(mode=0o700)
    owner = shared.stat().st_uid
    user = owner + 1
    monkeypatch.setattr(os, "geteuid", lambda: user)
    why = f"it belongs to user {owner}, and this is user {user} (chown {user}, or remove it)"
    assert refused().startswith(f"{shared}: {why}: {MEND}")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a folder away")
def test_a_cache_folder_that_was_given_away_is_refused(shared: Path) -> None:
    shared.mkdir(mode=0o700)
    os.chown(shared, 12345, -1)
    assert "it belongs to user 12345, and this is user 0 (chown 0, or remove it)" in refused()


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o1777])
def test_a_cache_folder_that_others_may_write_is_refused(shared: Path, mode: int) -> None:
    shared.mkdir()
    shared.chmod(mode)
    assert refused().startswith(f"{shared}: others may write to it, by its mode {mode:04o} (chmod 700): {MEND}")
    shared.chmod(0o755)
    paths.locked("sweep").close()


def test_a_link_in_place_of_the_cache_folder_is_refused(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    shared.symlink_to(tmp_path / "elsewhere")
    assert refused().startswith(f"{shared}: it is a symbolic link (remove it): {MEND}")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_link_in_place_of_a_lock_is_not_followed(shared: Path, tmp_path: Path) -> None:
    shared.mkdir(mode=0o700)
    (tmp_path / "precious").write_text("as it was")
    (shared / "sweep.lock").symlink_to(tmp_path / "precious")
    assert "Too many levels of symbolic links" in refused()
    (shared / "thing.held").symlink_to(tmp_path / "precious")
    with SharedLocks() as holds, pytest.raises(OSError, match="symbolic links"):
        holds.add("thing")
    assert (tmp_path / "precious").read_text() == "as it was"
