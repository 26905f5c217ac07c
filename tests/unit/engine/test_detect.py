import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_virtainers.engine import detect
from pytest_virtainers.engine.docker import contexts
from pytest_virtainers.engine.docker.engine import DockerEngine
from pytest_virtainers.errors import EngineNotFound
from tests.unit.fake_engine import EXEC, credentials, serving

NO_ENGINE: dict[str, str] = {"XDG_RUNTIME_DIR": "/nonexistent", "PATH": "/nonexistent"}


@pytest.fixture
def api() -> Iterator[str]:
    with serving() as engine:
        yield engine.url


@pytest.fixture(autouse=True)
def no_docker_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("CONTEXT", "CONFIG", "HOST", "TLS_VERIFY", "CERT_PATH"):
        monkeypatch.delenv(f"DOCKER_{name}", raising=False)


def order(choice: str, **environ: str) -> list[str]:
    return [each.origin for each in detect.candidates(choice, {**NO_ENGINE, **environ})]


def test_auto_tries_docker_first_then_podman() -> None:
    assert order("auto") == [
        "Docker's socket",
        "rootless Docker's socket",
        "Docker Desktop's socket",
        "Podman's socket",
        "rootless Podman's socket",
    ]
    assert order("auto", DOCKER_HOST="tcp://x", CONTAINER_HOST="unix:///y")[0] == "DOCKER_HOST"
    assert order("podman", DOCKER_HOST="tcp://x", CONTAINER_HOST="unix:///y")[0] == "CONTAINER_HOST"
    assert order("docker", CONTAINER_HOST="unix:///y") == order("docker")


def test_the_kind_of_an_engine_is_detected(api: str) -> None:
    engine = detect.find(api, NO_ENGINE)
    assert (engine.kind, str(engine)) == ("podman", f"podman 4.9 at {api}")
    engine.close()


def test_docker_host_is_followed(api: str) -> None:
    engine = detect.find("auto", {**NO_ENGINE, "DOCKER_HOST": api})
    assert engine.url == api
    engine.close()


def test_docker_host_is_followed_with_its_tls_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", os.devnull)  # for the rest of the world
    with serving(tls=credentials(tmp_path)) as server:
        environ = {
            **NO_ENGINE,
            "DOCKER_HOST": server.url,
            "DOCKER_TLS_VERIFY": "1",
            "DOCKER_CERT_PATH": str(tmp_path),
        }
        engine = detect.find("auto", environ)
        assert isinstance(engine, DockerEngine)
        assert (engine.url, engine.api.cert) == (server.url, (str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")))
        engine.close()
        (tmp_path / "key.pem").unlink()
        with pytest.raises(
            EngineNotFound, match=r"Put ca\.pem, cert\.pem and key\.pem into the folder DOCKER_CERT_PATH"
        ):
            detect.find("auto", environ)


def context(folder: Path, host: str, tls: Path | None = None) -> Path:
    """Write the files of Docker's command line for its current context; return the folder of its certificates."""
    name = hashlib.sha256(b"lab").hexdigest()
    meta, certificates = folder / f"contexts/meta/{name}", folder / f"contexts/tls/{name}/docker"
    meta.mkdir(parents=True)
    (folder / "config.json").write_text('{"currentContext": "lab"}')
    (meta / "meta.json").write_text(
        json.dumps({"Name": "lab", "Metadata": {}, "Endpoints": {"docker": {"Host": host, "SkipTLSVerify": False}}})
    )
    if tls is not None:
        certificates.parent.mkdir(parents=True)
        certificates.symlink_to(tls)
    return certificates


def test_a_docker_context_is_followed(api: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    context(tmp_path / "docker", api)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    assert order("auto")[0] == "Docker's context 'lab'"
    engine = detect.find("auto", NO_ENGINE)
    assert engine.url == api
    engine.close()
    assert order("auto", DOCKER_HOST=api)[0] == "DOCKER_HOST"


def shell_words(kind: str, url: str) -> str:
    return " ".join(contexts.command_line(kind, url))


def test_a_socket_in_another_users_folder_is_not_this_users_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = {"XDG_RUNTIME_DIR": str(tmp_path)}
    sockets = {f"unix://{tmp_path}/docker.sock", f"unix://{tmp_path}/podman/podman.sock"}
    assert sockets <= {each.url for each in detect.candidates("auto", environ)}
    monkeypatch.setattr("os.geteuid", lambda: tmp_path.stat().st_uid + 1)
    assert not sockets & {each.url for each in detect.candidates("auto", environ)}


def test_the_command_line_omits_default_urls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    monkeypatch.delenv("CONTAINER_HOST", raising=False)
    monkeypatch.setattr("os.getuid", lambda: 7)
    socket, root_socket = "unix:///run/user/7/podman/podman.sock", "unix:///run/podman/podman.sock"
    assert shell_words("podman", socket) == "podman"
    assert shell_words("podman", root_socket) == f"podman --url {root_socket}"
    monkeypatch.setattr("os.getuid", lambda: 0)
    assert shell_words("podman", root_socket) == "podman"
    assert shell_words("podman", "unix:///tmp/x/podman.sock") == "podman --url unix:///tmp/x/podman.sock"
    assert shell_words("docker", "unix:///var/run/docker.sock") == "docker"
    assert shell_words("docker", "tcp://lab:2375") == "docker -H tcp://lab:2375"
    monkeypatch.setenv("DOCKER_HOST", "tcp://lab:2375")
    assert shell_words("docker", "unix:///var/run/docker.sock") == "docker -H unix:///var/run/docker.sock"
    assert shell_words("docker", "tcp://lab:2375") == "docker -H tcp://lab:2375"
    monkeypatch.delenv("DOCKER_HOST")
    context(tmp_path / "docker", "tcp://lab:2375")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    assert shell_words("docker", "tcp://lab:2375") == "docker"
    assert shell_words("docker", "unix:///var/run/docker.sock") == "docker -H unix:///var/run/docker.sock"


def test_a_docker_context_is_followed_with_its_tls_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with serving(EXEC, tls=credentials(tmp_path / "tls")) as server:
        certificates = context(tmp_path / "docker", server.url, tmp_path / "tls")
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
        engine = detect.find("auto", NO_ENGINE)
        assert isinstance(engine, DockerEngine)
        assert (engine.url, engine.api.verify) == (server.url, str(certificates / "ca.pem"))
        engine.close()
        assert relayed(server.url) == b"HI"


def test_the_relay_uses_the_tls_settings_of_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
    monkeypatch.setenv("DOCKER_CERT_PATH", str(tmp_path))
    with serving(EXEC, tls=credentials(tmp_path)) as server:
        assert relayed(server.url) == b"HI"


def relayed(url: str) -> bytes:
    command = [sys.executable, "-m", "pytest_virtainers.engine.relay", url, "c", "relay", "22"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as relay:
        assert relay.stdin is not None
        assert relay.stdout is not None
        relay.stdin.write(b"hi")
        relay.stdin.flush()
        return relay.stdout.read()


def test_a_silent_docker_host_is_not_replaced() -> None:
    with pytest.raises(EngineNotFound) as caught:
        detect.find("auto", {**NO_ENGINE, "DOCKER_HOST": "tcp://127.0.0.1:9"})
    assert str(caught.value) == (
        "no container engine answered (engine=auto). Tried:\n"
        "  DOCKER_HOST, tcp://127.0.0.1:9: Connection refused\n"
        "Remedy: apt-get install podman   (or: docker.io; then start dockerd)"
    )


@pytest.mark.parametrize("url", ["tcp://127.0.0.1:9", "unix:///nonexistent/docker.sock", "nonsense://x"])
def test_a_silent_url_is_reported_with_its_reason(url: str) -> None:
    with pytest.raises(EngineNotFound) as caught:
        detect.find(url, NO_ENGINE)
    lines = str(caught.value).splitlines()
    assert lines[1].startswith(f"  the engine setting, {url}: ")
    assert lines[1].removeprefix(f"  the engine setting, {url}: ") in (
        "Connection refused",
        "No such file or directory",
        "Invalid bind address protocol: nonsense://x",
    )
    assert lines[2] == "Remedy: start the engine at that URL, or choose another one with --virtainer-engine"


def test_all_tried_places_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        detect, "candidates", lambda *_: [detect.Candidate("unix:///nonexistent/a.sock", "Podman's socket")]
    )
    with pytest.raises(EngineNotFound) as caught:
        detect.find("podman", NO_ENGINE)
    assert "  Podman's socket, unix:///nonexistent/a.sock: No such file or directory\n" in str(caught.value)
    assert "  a private Podman service: no podman on PATH\n" in str(caught.value)


def test_a_failed_podman_service_is_reported_with_its_output(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "podman"
    broken.write_text("#!/bin/sh\necho cannot clone: Operation not permitted >&2\nexit 125\n")
    broken.chmod(0o755)
    monkeypatch.setattr(detect, "candidates", lambda *_: [])
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    began = time.monotonic()
    with pytest.raises(EngineNotFound, match=r"did not start: cannot clone: Operation not permitted"):
        detect.find("auto", {**NO_ENGINE, "PATH": str(tmp_path)})
    assert time.monotonic() - began < 15
    assert [path.name for path in tmp_path.iterdir()] == ["podman"]


@pytest.fixture
def deaf_podman(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a podman that listens a moment after its socket exists, hangs up on callers, and writes its process
    id."""
    # Not in `tmp_path`: under pytest-xdist that is longer than the name of a socket may be.
    with tempfile.TemporaryDirectory() as folder:
        podman = Path(folder, "podman")
        podman.write_text(
            f"#!{sys.executable}\n"
            "import os, pathlib, socket, sys, time\n"
            f"pathlib.Path({folder!r}, 'pid').write_text(str(os.getpid()))\n"
            "server = socket.socket(socket.AF_UNIX)\n"
            "server.bind(sys.argv[-1].removeprefix('unix://'))\n"
            "time.sleep(0.3)\n"
            "server.listen()\n"
            "while True:\n"
            "    server.accept()[0].close()\n"
        )
        podman.chmod(0o755)
        monkeypatch.setattr("tempfile.tempdir", folder)
        yield podman


def runs(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_podman_service_that_does_not_answer_is_stopped(monkeypatch: pytest.MonkeyPatch, deaf_podman: Path) -> None:
    monkeypatch.setattr(detect, "candidates", lambda *_: [])
    with pytest.raises(EngineNotFound, match=r"  a private Podman service: .*(reset|closed)"):
        detect.find("podman", {**NO_ENGINE, "PATH": str(deaf_podman.parent)})
    assert not runs(int((deaf_podman.parent / "pid").read_text()))
    assert {path.name for path in deaf_podman.parent.iterdir()} == {"podman", "pid"}


def test_a_private_podman_service_ends_with_a_killed_process(deaf_podman: Path) -> None:
    program = (
        "import os, tempfile; from pytest_virtainers.engine.docker.podman_service import PodmanService\n"
        f"tempfile.tempdir = {str(deaf_podman.parent)!r}; kept = PodmanService({str(deaf_podman)!r})\n"
        "os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9
    service = int((deaf_podman.parent / "pid").read_text())
    deadline = time.monotonic() + 60
    while runs(service) or list(deaf_podman.parent.glob("virtainers-podman-*")):
        assert time.monotonic() < deadline, "the service, or its folder, is still there"
        time.sleep(0.05)


def test_a_socket_that_never_answers_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_virtainers.engine.docker.engine._PROBE_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(EngineNotFound, match="timed out"):
            detect.find(url, NO_ENGINE)
