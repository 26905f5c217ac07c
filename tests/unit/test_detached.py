"""Detached VMs: finding them, sweeping around them, and their output."""

import io
import json
import struct
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

import pytest

from pytest_virtainers import cli, detached
from pytest_virtainers.api import persistent, spec_for
from pytest_virtainers.cli.common import show
from pytest_virtainers.config.settings import resolve
from pytest_virtainers.config.spec import check, merge
from pytest_virtainers.engine import ownership
from pytest_virtainers.engine.docker.engine import DockerEngine
from pytest_virtainers.errors import EngineError, SpecError, UsageError, VMGone
from pytest_virtainers.launching.cloud_init import user_data
from pytest_virtainers.ssh.keys import KeyPair, Keys
from pytest_virtainers.support.progress import SILENT
from tests.unit.fake_engine import FakeEngine, serving
from tests.unit.vm.fake_container import event

LIVES = ownership.labels(ownership.DETACHED, "run")
KEYS = Keys.generate()
DEAD = {**LIVES, "virtainers.owner-started": "1"}
PAPERS = {
    "format": 1,
    "spec": {"image": "debian-13", "ram": 512},
    "user": "debian",
    "keys": asdict(KEYS),
}


def listed(identifier: str, name: str, vm: str, state: str = "running", **labels: str) -> dict[str, Any]:
    """Describe a container as engines list it."""
    return {
        "Id": identifier,
        "Names": [f"/{name}"],
        "Labels": {**DEAD, "virtainers.vm": vm, "virtainers.image": "debian-13", **labels},
        "State": state,
        "Created": 1700000000,
        "NetworkSettings": {"Networks": {"virtainers-default": {"IPAddress": "10.213.1.2"}}},
    }


WEB = listed("1", "virtainers-web", "web")
OFF = listed("2", "virtainers-off", "off", "exited")
HALF = listed("3", "virtainers-0a1b2c3d-1-half", "half")


@pytest.fixture
def server() -> Iterator[FakeEngine]:
    with serving({"GET /containers/json": (200, [WEB, OFF, HALF])}) as server:
        yield server


@pytest.fixture
def engine(server: FakeEngine) -> Iterator[DockerEngine]:
    engine = DockerEngine(server.url)
    yield engine
    engine.close()


def test_only_vms_that_were_ready_are_listed(engine: DockerEngine) -> None:
    assert [(each.name, each.runs, each.address) for each in detached.list_all(engine)] == [
        ("off", False, "10.213.1.2"),
        ("web", True, "10.213.1.2"),
    ]


def test_a_wrong_name_is_reported_with_existing_names(engine: DockerEngine, server: FakeEngine) -> None:
    with pytest.raises(UsageError, match=r"^no detached VM is called wbe: there are off, web\. To start one: "):
        detached.find(engine, "wbe")
    server.answers["GET /containers/json"] = (200, [])
    with pytest.raises(UsageError, match=r"^no detached VM is called web: there is none\. "):
        detached.find(engine, "web")


def test_a_vm_that_is_off_cannot_be_attached(server: FakeEngine) -> None:
    settings = resolve([])
    object.__setattr__(settings, "engine", server.url)
    with (
        pytest.raises(VMGone, match=r"^off is exited: virtainers start off switches it on"),
        detached.attached(settings, "off", SILENT),
    ):
        pytest.fail("it has one")


def test_remove_refuses_a_running_vm(engine: DockerEngine, server: FakeEngine) -> None:
    with pytest.raises(
        UsageError, match=r"^web is running\. Switch it off first \(virtainers stop web\), or use rm --force$"
    ):
        detached.remove(engine, "web")
    assert not any(each.startswith("DELETE") for each in server.asked)


@pytest.mark.parametrize(
    ("variable", "code", "seconds"), [("RAM=512", 0, 75), ("SHUTDOWN_TIMEOUT=300", 0, 315), ("RAM=512", 2, 75)]
)
def test_stop_waits_for_the_shutdown_timeout_of_the_guest(
    server: FakeEngine, capsys: pytest.CaptureFixture[str], variable: str, code: int, seconds: int
) -> None:
    asked = []

    def end(request: BaseHTTPRequestHandler) -> None:
        asked.append(urlsplit(request.path).query)
        request.send_response(204)
        request.end_headers()

    facts = {**INSPECTED, "Config": {"Env": [variable]}, "State": {"ExitCode": code}}
    server.answers |= {f"GET /containers/{each}/json": (200, facts) for each in ("1", "virtainers-web")}
    server.answers["POST /containers/1/stop"] = end
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIRTAINER_ENGINE", server.url)
        assert cli.main(["stop", "web"]) == 0
    assert asked == [f"t={seconds}"]
    cut = "virtainers: web did not shut down within its SHUTDOWN_TIMEOUT: its power was cut\n"
    assert capsys.readouterr().err.endswith(cut) == (code == 2)


def archive(content: bytes) -> Any:
    """Answer with the archive of one file."""
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w") as tar:
        entry = tarfile.TarInfo("machine.json")
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(body.getvalue())))
        request.end_headers()
        request.wfile.write(body.getvalue())

    return answer


INSPECTED = {
    "Id": "1",
    "Name": "/virtainers-web",
    "State": {"StartedAt": "2023-11-14T22:13:20.250000123Z"},
    "Config": {"Env": ["RAM=512", "IMAGE_DIR=/mounted", "EMPTY="], "Tty": False},
    "HostConfig": {"NetworkMode": "virtainers-default"},
    "NetworkSettings": {"Networks": {"virtainers-default": {"IPAddress": "10.213.1.2", "MacAddress": "02:00"}}},
}


def test_inspect_shows_no_private_key(engine: DockerEngine, server: FakeEngine) -> None:
    server.answers["GET /containers/virtainers-web/json"] = (200, INSPECTED)
    server.answers["GET /containers/1/archive"] = archive(json.dumps(PAPERS).encode())
    facts = detached.inspect(engine, "web")
    assert (facts["user"], facts["host_key"], facts["spec"]["ram"]) == ("debian", KEYS.host.public, 512)
    assert "secret" not in str(facts)
    server.answers["GET /containers/1/archive"] = archive(json.dumps({**PAPERS, "format": 7}).encode())
    with pytest.raises(EngineError, match=r"^virtainers-web was made by another version of virtainers \(7, not 1\)"):
        detached.inspect(engine, "web")


@pytest.mark.parametrize(
    ("papers", "said"),
    [
        ({"user": "-oProxyCommand=id"}, r"user='-oProxyCommand=id': a login name of"),
        (
            {"spec": {"image": "x", "env": {"LD_PRELOAD": "/x"}}},
            r"spec\.env=\{'LD_PRELOAD': '/x'\}: 'LD_PRELOAD' is none of",
        ),
        ({"spec": {"image": "x", "name": "a\nHost *"}}, r"spec\.name='a\\nHost \*': a host name of"),
        ({"keys": {"login": asdict(KEYS.login), "host": {"private": "", "public": "x\ny"}}}, r"keys\.host\.private="),
    ],
)
def test_files_of_the_container_are_checked(
    papers: dict[str, object], said: str, engine: DockerEngine, server: FakeEngine
) -> None:
    server.answers["GET /containers/virtainers-web/json"] = (200, INSPECTED)
    server.answers["GET /containers/1/archive"] = archive(json.dumps(PAPERS | papers).encode())
    with pytest.raises(SpecError, match=rf"^machine\.json in virtainers-web: {said}"):
        detached.inspect(engine, "web")
    server.answers["GET /containers/1/archive"] = archive(b"[" * 10_000)
    with pytest.raises(EngineError, match=r"^machine\.json in virtainers-web cannot be read: "):
        detached.inspect(engine, "web")


def test_stop_accepts_a_container_that_is_removed_at_its_end(engine: DockerEngine, server: FakeEngine) -> None:
    server.answers["GET /containers/virtainers-web/json"] = (200, INSPECTED)
    for status, said in ((404, "No such container: 1"), (500, "container 1 does not exist: no such container")):
        server.answers["POST /containers/1/stop"] = (status, {"message": said})
        assert detached.stop(engine, "web")
    server.answers["POST /containers/1/stop"] = (500, {"message": "runc hangs"})
    with pytest.raises(EngineError, match=r"^stopping container virtainers-web failed: .* said: runc hangs"):
        detached.stop(engine, "web")


def test_follow_collects_output_since_the_last_start(engine: DockerEngine, server: FakeEngine) -> None:
    said = {1: b"what the console shows\n", 2: b'{"event": "guest-off"}\n'}
    asked: list[dict[str, list[str]]] = []

    def logs(request: BaseHTTPRequestHandler) -> None:
        asked.append(parse_qs(urlsplit(request.path).query))
        request.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        for stream, text in said.items():
            request.wfile.write(struct.pack(">BxxxL", stream, len(text)) + text)

    server.answers |= {f"GET /containers/{each}/json": (200, INSPECTED) for each in ("1", "virtainers-web")}
    server.answers["GET /containers/1/logs"] = logs
    container = engine.adopt("virtainers-web")
    assert container.environment == {"RAM": "512", "IMAGE_DIR": "/mounted", "EMPTY": ""}
    container.follow()
    assert container.wait(60)
    assert (bytes(container.stdout), bytes(container.stderr)) == (said[1], said[2])
    assert [(each["since"][0], each["follow"][0]) for each in asked] == [("1700000000.05", "1")]
    container.close()
    container.close()
    assert not any(each.startswith("DELETE") for each in server.asked), "it stays"


def test_sweep_removes_unready_vms_and_the_unused_network(engine: DockerEngine, server: FakeEngine) -> None:
    network = {"Id": "n", "Name": "virtainers-default", "Labels": {**DEAD, "virtainers": ownership.DETACHED_NETWORK}}
    server.answers |= {
        "GET /networks": (200, [network]),
        "GET /volumes": (200, {"Volumes": None}),
        "DELETE /containers/3": (204, None),
        "DELETE /networks/n": (204, None),
    }
    assert engine.sweep() == ["virtainers-0a1b2c3d-1-half"]
    server.answers["GET /containers/json"] = (200, [listed("4", "virtainers-0-1-new", "new", **LIVES)])
    assert engine.sweep() == [], "the new VM will need it"
    server.answers["GET /containers/json"] = (200, [])
    assert engine.sweep() == ["virtainers-default"]


def test_lists_are_tables_or_json(
    server: FakeEngine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIRTAINER_ENGINE", server.url)
    assert cli.main(["ls"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["NAME", "IMAGE", "STATE", "ADDRESS", "AGE"]
    assert [line[:4] for line in lines[1:]] == [
        ["off", "debian-13", "exited", "10.213.1.2"],
        ["web", "debian-13", "running", "10.213.1.2"],
    ]
    assert cli.main(["ls", "--json"]) == 0
    assert [each["container"] for each in json.loads(capsys.readouterr().out)] == ["virtainers-off", "virtainers-web"]


def test_a_persistent_disk_is_booted_and_its_folder_created(tmp_path: Any) -> None:
    settings = resolve([])
    assert spec_for({"name": "db"}, settings, tmp_path).template is False
    assert spec_for({"name": "db"}, settings, None).template is True
    with pytest.raises(SpecError, match=r"^launch: persist keeps a disk, but a clone has its template's"):
        spec_for({"template": True}, settings, tmp_path)
    assert persistent(tmp_path / "new") == str(tmp_path / "new")
    assert (tmp_path / "new").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(SpecError, match=r"^persist=.*/file: File exists$"):
        persistent(tmp_path / "file")


def test_a_silent_log_does_not_end_until_close(engine: DockerEngine, server: FakeEngine) -> None:
    def logs(request: BaseHTTPRequestHandler) -> None:
        frame = struct.pack(">BxxxL", 1, 5) + b"hello"
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        request.wfile.write(head + f"{len(frame):x}\r\n".encode() + frame + b"\r\n")
        request.rfile.read(1)  # returns when the client hangs up

    server.answers |= {f"GET /containers/{each}/json": (200, INSPECTED) for each in ("1", "virtainers-web")}
    server.answers["GET /containers/1/logs"] = logs
    engine.api.timeout = cast("Any", 0.3)
    container = engine.adopt("virtainers-web")
    container.follow()
    assert not container.wait(1.0), "three times as long as the limit of an answer"
    assert bytes(container.stdout) == b"hello"
    container.close()
    assert container.wait(60)


@pytest.mark.parametrize(("text", "words"), [("-----BEGIN OPENSSH PRIVATE KEY-----", "this is a private key")])
def test_authorized_keys_are_lines_or_files_of_public_keys(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "key.pub").write_text("ssh-ed25519 AAAA me\n\nssh-rsa BBBB me\n")
    checked = check({"authorized_keys": [tmp_path / "key.pub", "ssh-ed25519 CCCC you"]}, "here")
    assert checked["authorized_keys"] == ("ssh-ed25519 AAAA me", "ssh-rsa BBBB me", "ssh-ed25519 CCCC you")
    with pytest.raises(SpecError, match=words):
        check({"authorized_keys": [text]}, "here")
    spec = merge(resolve([]).shape, checked)
    (account,) = user_data(spec, Keys(KeyPair("", "ours"), KeyPair("", "")), "me")["users"]
    assert account["ssh_authorized_keys"] == ["ours", *checked["authorized_keys"]]


def test_a_missing_file_is_reported_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise FileNotFoundError(2, "No such file or directory", "missing")

    monkeypatch.setattr(detached, "attached", fail)
    assert cli.main(["cp", "missing", "web:/srv"]) == 1
    assert capsys.readouterr().err == "virtainers: [Errno 2] No such file or directory: 'missing'\n"


EVIL = b"boot \x1b]0;owned\x07\x1b[31mred\xc2\x9b0m \xe2\x80\xae end\r\n"


def test_logs_are_escaped_on_terminals_and_unchanged_for_programs(
    server: FakeEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def logs(request: BaseHTTPRequestHandler) -> None:
        request.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        for at in range(len(EVIL)):
            request.wfile.write(struct.pack(">BxxxL", 1, 1) + EVIL[at : at + 1])

    monkeypatch.setenv("VIRTAINER_ENGINE", server.url)
    server.answers["GET /containers/virtainers-web/json"] = (200, INSPECTED)
    server.answers["GET /containers/1/logs"] = logs
    for terminal, expected in ((True, b"boot red \\u202e end\n"), (False, EVIL)):
        with (tmp_path / "out").open("w") as out:
            monkeypatch.setattr(out, "isatty", lambda terminal=terminal: terminal, raising=False)
            monkeypatch.setattr(sys, "stdout", out)
            assert cli.main(["logs", "web"]) == 0
        assert (tmp_path / "out").read_bytes() == expected


def test_logs_show_events_as_sentences(
    server: FakeEngine, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = [(2, event("guest-off")[:9]), (1, b"login: "), (2, event("guest-off")[9:] + b"Traceback:\nlast")]

    def logs(request: BaseHTTPRequestHandler) -> None:
        request.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        for stream, text in pieces:
            request.wfile.write(struct.pack(">BxxxL", stream, len(text)) + text)

    monkeypatch.setenv("VIRTAINER_ENGINE", server.url)
    server.answers["GET /containers/virtainers-web/json"] = (200, INSPECTED)
    server.answers["GET /containers/1/logs"] = logs
    assert cli.main(["logs", "web"]) == 0
    assert capfdbinary.readouterr().out == b"login: virtainer: guest switched itself off\nTraceback:\nlast"


def test_tables_and_messages_are_escaped(
    server: FakeEngine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    show([{"name": "a\x1b[2Jb\nc"}], as_json=False, columns=["name"])
    assert capsys.readouterr().out == "NAME\na\\x1b[2Jb\\nc\n"

    def fail(*_: object) -> None:
        raise FileNotFoundError(2, "No \x1b[2J file")

    monkeypatch.setattr(detached, "attached", fail)
    assert cli.main(["cp", "missing", "web:/srv"]) == 1
    assert capsys.readouterr().err == "virtainers: [Errno 2] No \\x1b[2J file\n"
