"""The process that outlives a run: when it removes objects, and when not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pytest_virtainers.engine import ownership, reaper
from pytest_virtainers.engine.reaper import Watcher
from tests.unit.fake_engine import Answer, serving

RUN = """
import os, sys, time
from pytest_virtainers.engine.reaper import Watcher

watcher = Watcher(["touch", sys.argv[1]])
print(watcher.process.pid, flush=True)
{then}
"""
SLEEPS = "time.sleep(60)"


def run(mark: Path, then: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", RUN.format(then=then), str(mark)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)


def appears(path: Path, seconds: float = 50.0) -> bool:
    deadline = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return path.exists()


def has_ended(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state in "ZX"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_the_watcher_runs_when_its_process_is_killed(tmp_path: Path, number: signal.Signals) -> None:
    with run(tmp_path / "mark", SLEEPS) as process:
        assert process.stdout
        process.stdout.readline()
        assert not (tmp_path / "mark").exists()
        os.killpg(process.pid, number)  # as a terminal and many CI systems signal a whole group
        process.wait()
        assert appears(tmp_path / "mark")


def test_the_watcher_runs_when_its_process_exits_without_close(tmp_path: Path) -> None:
    with run(tmp_path / "mark", "os._exit(0)"):
        assert appears(tmp_path / "mark")


def test_the_watcher_runs_although_a_forked_child_is_alive(tmp_path: Path) -> None:
    with run(tmp_path / "mark", "os.fork() or time.sleep(60); " + SLEEPS) as process:
        assert process.stdout
        process.stdout.readline()
        time.sleep(0.3)
        process.kill()
        process.wait()
        assert appears(tmp_path / "mark")
        os.killpg(process.pid, signal.SIGKILL)


def test_close_ends_the_watcher_without_running(tmp_path: Path) -> None:
    watcher = Watcher(["touch", str(tmp_path / "mark")])
    process = watcher.process
    assert process is not None
    watcher.close()
    watcher.close()
    assert process.returncode == 0, "it has been waited for"
    assert has_ended(process.pid)
    assert not (tmp_path / "mark").exists()


def test_a_forked_child_does_not_end_the_watcher(tmp_path: Path) -> None:
    watcher = Watcher(["touch", str(tmp_path / "mark")])
    child = os.fork()
    if child == 0:
        watcher.close()
        os._exit(0)
    os.waitpid(child, 0)
    assert watcher.process is not None
    assert watcher.process.poll() is None
    watcher.close()
    assert not (tmp_path / "mark").exists()


def test_without_a_shell_there_is_no_watcher(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "Popen", refuse)
    Watcher(["true"]).close()


def test_the_watcher_is_fast_and_small(tmp_path: Path) -> None:
    began = time.monotonic()
    watchers = [Watcher(["true"]) for _ in range(10)]
    seconds = time.monotonic() - began
    process = watchers[0].process
    assert process is not None
    memory = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    for watcher in watchers:
        watcher.close()
    assert seconds < 10, "no Python is started"
    assert memory < 8 * 2**20


def test_the_reaper_imports_this_package_from_any_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It imports neither a package of the current folder nor one that a test has put first."""
    (tmp_path / "pytest_virtainers" / "engine").mkdir(parents=True)
    for folder in ("", "engine"):
        (tmp_path / "pytest_virtainers" / folder / "__init__.py").touch()
    (tmp_path / "pytest_virtainers" / "engine" / "reaper.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    environ = {**os.environ, "PYTHONPATH": reaper.import_path()}
    command = [sys.executable, "-P", "-c", "import pytest_virtainers.engine.reaper as r; print(r.__file__)"]
    ran = subprocess.run(command, cwd="/", env=environ, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == reaper.__file__


def test_the_reaper_waits_for_objects_that_are_still_created(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(reaper, "_QUIET_SECONDS", 0.3)
    monkeypatch.setattr(reaper, "_POLL_SECONDS", 0.05)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    late = {"Id": "c", "Names": ["/late"], "Labels": ownership.labels("vm", "ours")}
    answers: dict[str, Answer] = {
        "GET /containers/json": (200, []),
        "GET /networks": (200, []),
        "GET /volumes": (200, {"Volumes": None}),
    }
    with serving(answers) as server:
        monkeypatch.setattr(sys, "argv", ["reaper", server.url, "ours"])

        def removed(request: object) -> None:
            server.answers["GET /containers/json"] = (200, [])
            request.send_response(204)  # type: ignore[attr-defined]
            request.end_headers()  # type: ignore[attr-defined]

        def second(request: object) -> None:
            server.answers["GET /containers/json"] = (200, [late])
            server.answers["DELETE /containers/c"] = removed
            request.send_response(200)  # type: ignore[attr-defined]
            request.send_header("Content-Length", "2")  # type: ignore[attr-defined]
            request.end_headers()  # type: ignore[attr-defined]
            request.wfile.write(b"[]")  # type: ignore[attr-defined]

        server.answers["GET /containers/json"] = second
        reaper.main()
        assert "DELETE /containers/c" in server.asked
