"""The process that outlives a run: when it acts, and when not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pytest_virtainers.engine import detect, ownership, reaper
from pytest_virtainers.engine.reaper import Watcher
from tests.unit.fake_engine import Answer, serving

RUN = """
import os, sys, time
from pytest_virtainers.engine.reaper import Watcher

watcher = Watcher(["touch", sys.argv[1]])
print(watcher._process.pid, flush=True)
{then}
"""
SLEEPS = "time.sleep(60)"


def run(mark: Path, then: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", RUN.format(then=then), str(mark)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)


def appears(path: Path, seconds: float = 5.0) -> bool:
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
def test_it_acts_when_its_process_is_killed(tmp_path: Path, number: signal.Signals) -> None:
    with run(tmp_path / "mark", SLEEPS) as process:
        assert process.stdout
        process.stdout.readline()
        assert not (tmp_path / "mark").exists()
        os.killpg(process.pid, number)  # also of a whole group, as a terminal and many CI systems do
        process.wait()
        assert appears(tmp_path / "mark")


def test_it_acts_when_its_process_leaves_without_a_word(tmp_path: Path) -> None:
    with run(tmp_path / "mark", "os._exit(0)"):
        assert appears(tmp_path / "mark")


def test_it_acts_though_a_forked_child_lives_on(tmp_path: Path) -> None:
    with run(tmp_path / "mark", "os.fork() or time.sleep(60); " + SLEEPS) as process:
        assert process.stdout
        process.stdout.readline()
        time.sleep(0.3)
        process.kill()
        process.wait()
        assert appears(tmp_path / "mark")
        os.killpg(process.pid, signal.SIGKILL)


def test_an_orderly_end_ends_it_and_nothing_is_run(tmp_path: Path) -> None:
    watcher = Watcher(["touch", str(tmp_path / "mark")])
    process = watcher._process
    assert process is not None
    watcher.close()
    watcher.close()
    assert process.returncode == 0, "it has been waited for"
    assert has_ended(process.pid)
    assert not (tmp_path / "mark").exists()


def test_a_forked_child_does_not_end_it(tmp_path: Path) -> None:
    watcher = Watcher(["touch", str(tmp_path / "mark")])
    child = os.fork()
    if child == 0:
        watcher.close()
        os._exit(0)
    os.waitpid(child, 0)
    assert watcher._process is not None
    assert watcher._process.poll() is None
    watcher.close()
    assert not (tmp_path / "mark").exists()


def test_a_run_goes_on_without_it_where_there_is_no_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "Popen", refuse)
    Watcher(["true"]).close()


def test_it_is_quick_and_small(tmp_path: Path) -> None:
    began = time.monotonic()
    watchers = [Watcher(["true"]) for _ in range(10)]
    seconds = time.monotonic() - began
    process = watchers[0]._process
    assert process is not None
    memory = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    for watcher in watchers:
        watcher.close()
    assert seconds < 1, "no Python is started"
    assert memory < 8 * 2**20


def test_what_it_runs_is_this_package_wherever_it_stands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Not one from a current folder, which it does not have, nor one that a test has put first."""
    (tmp_path / "pytest_virtainers" / "engine").mkdir(parents=True)
    for folder in ("", "engine"):
        (tmp_path / "pytest_virtainers" / folder / "__init__.py").touch()
    (tmp_path / "pytest_virtainers" / "engine" / "reaper.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    environ = {**os.environ, "PYTHONPATH": reaper.import_path()}
    command = [sys.executable, "-P", "-c", "import pytest_virtainers.engine.reaper as r; print(r.__file__)"]
    ran = subprocess.run(command, cwd="/", env=environ, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == reaper.__file__


def test_it_removes_what_the_run_owns_though_its_process_lives() -> None:
    ours, others = ownership.labels("vm", "ours"), ownership.labels("vm", "others")
    network = ownership.labels(ownership.DETACHED_NETWORK, "ours")
    kept = {**ownership.labels(ownership.DETACHED, "ours"), ownership.NAME: "web"}
    answers: dict[str, Answer] = {
        "GET /containers/json": (
            200,
            [
                {"Id": "c1", "Names": ["/c1"], "Labels": ours, "State": "created"},
                {"Id": "c2", "Names": ["/c2"], "Labels": others},
                {"Id": "c3", "Names": ["/virtainers-web"], "Labels": kept},
                {"Id": "c4", "Names": ["/half-made"], "Labels": kept},
            ],
        ),
        "DELETE /containers/c1": (204, None),
        "DELETE /containers/c4": (204, None),
        "GET /networks": (
            200,
            [
                {"Id": "n1", "Name": "n1", "Labels": ours},
                {"Id": "n2", "Name": "n2", "Labels": others},
                {"Id": "n3", "Name": "n3", "Labels": network},
            ],
        ),
        "DELETE /networks/n1": (204, None),
        "GET /volumes": (
            200,
            {
                "Volumes": [
                    {"Name": "v1", "Labels": ours},
                    {"Name": "v2", "Labels": ours},
                    {"Name": "v3", "Labels": {}},
                ]
            },
        ),
        "DELETE /volumes/v1": (204, None),
        "DELETE /volumes/v2": (409, {"message": "volume is in use"}),
    }
    with serving(answers) as server:
        engine = detect.find(server.url)
        assert engine.sweep("ours") == ["c1", "half-made", "n1", "v1"]
        assert [each for each in server.asked if each.startswith("DELETE")] == [
            "DELETE /containers/c1",
            "DELETE /containers/c4",
            "DELETE /networks/n1",
            "DELETE /volumes/v1",
            "DELETE /volumes/v2",
        ]
        engine.close()


def test_it_waits_for_what_the_engine_is_still_creating(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
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
