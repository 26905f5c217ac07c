import io
import json
import struct
import tarfile
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from pytest_virtainers.engine.docker.container import DockerContainer
from pytest_virtainers.engine.docker.engine import DockerEngine
from pytest_virtainers.engine.plan import Bind, Plan
from pytest_virtainers.engine.tar import Link
from pytest_virtainers.errors import EngineError
from tests.unit.fake_engine import Answer, FakeEngine, serving

CREATED: dict[str, Answer] = {"POST /containers/create": (201, {"Id": "0123", "Warnings": []})}
PLAN = Plan(name="db", kind="vm", image="an-image")


def test_close_waits_for_a_removal_by_the_engine() -> None:
    with serving(CREATED) as server:
        engine = DockerEngine(server.url)
        container = engine.create(PLAN, "run")
        server.answers["DELETE /containers/0123"] = (409, {"message": "removal is already in progress"})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pytest_virtainers.engine.docker.removal._SECONDS", 0.3)
            with pytest.raises(EngineError, match=r"removing container db failed: .* removal is already in progress"):
                container.close()
        assert server.asked.count("DELETE /containers/0123") > 1
        container.close()  # once is enough
        engine.close()


def test_close_reports_an_engine_that_has_stopped() -> None:
    with serving(CREATED) as server:
        engine = DockerEngine(server.url)
        container = engine.create(PLAN, "run")
    with pytest.raises(EngineError, match=r"removing container db failed: podman 4\.9 at tcp.*Connection refused"):
        container.close()
    engine.close()


MIB = 1024 * 1024
IN_USE = (409, {"message": "volume is in use"})
WITH_VOLUME: dict[str, Answer] = {
    **CREATED,
    "POST /volumes/create": (201, {"Name": "db-disk"}),
    "DELETE /containers/0123": (204, None),
    "DELETE /volumes/db-disk": (204, None),
}


@pytest.fixture
def server() -> Iterator[FakeEngine]:
    with serving(WITH_VOLUME) as server:
        yield server


@pytest.fixture
def engine(server: FakeEngine) -> Iterator[DockerEngine]:
    engine = DockerEngine(server.url)
    yield engine
    engine.close()


@pytest.fixture
def container(engine: DockerEngine) -> DockerContainer:
    return engine.create(Plan(name="db", kind="vm", image="an-image", volume="db-disk"), "run")


def test_a_volume_is_created_before_and_removed_after_its_container(
    container: DockerContainer, server: FakeEngine
) -> None:
    container.close()
    container.close()
    assert server.asked[-4:] == [
        "POST /volumes/create",
        "POST /containers/create",
        "DELETE /containers/0123",
        "DELETE /volumes/db-disk",
    ]


def test_close_waits_for_a_volume_in_use(
    container: DockerContainer, server: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytest_virtainers.engine.docker.removal._SECONDS", 0.2)
    server.answers["DELETE /volumes/db-disk"] = IN_USE
    with pytest.raises(EngineError, match=r"removing volume db-disk failed: .*volume is in use"):
        container.close()
    assert server.asked.count("DELETE /volumes/db-disk") > 1
    server.answers["DELETE /volumes/db-disk"] = (404, {"message": "no such volume"})
    container.close()
    assert container.volume is None, "a removed volume is no error"


def archive(*members: tuple[str, bytes | None], cut: int | None = None) -> Answer:
    """Answer with a tar archive of files, or folders (None), as engines do."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.type, entry.size = (tarfile.DIRTYPE, 0) if data is None else (tarfile.REGTYPE, len(data))
            tar.addfile(entry, io.BytesIO(data or b""))
    body = content.getvalue()[:cut]

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Type", "application/x-tar")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    return answer


@pytest.mark.parametrize(
    "content", [b"", b"x", b"\0" * 3 * MIB, b"x" + b"\0" * 3 * MIB + b"x", b"x" + b"\0" * 3 * MIB]
)
def test_fetch_writes_a_private_sparse_copy(
    container: DockerContainer, server: FakeEngine, content: bytes, tmp_path: Path
) -> None:
    server.answers["GET /containers/0123/archive"] = archive(("disk", content))
    container.fetch("/mounted/disk", tmp_path / "disk")
    assert (tmp_path / "disk").read_bytes() == content
    status = (tmp_path / "disk").stat()
    assert status.st_mode & 0o777 == 0o600
    assert status.st_blocks * 512 < MIB


@pytest.mark.parametrize("planted", ["victim", "nowhere"])
def test_fetch_does_not_follow_links(
    container: DockerContainer, server: FakeEngine, planted: str, tmp_path: Path
) -> None:
    (tmp_path / "victim").write_text("untouched")
    (tmp_path / "disk").symlink_to(planted)
    server.answers["GET /containers/0123/archive"] = archive(("disk", b"evil"))
    with pytest.raises(EngineError, match="File exists"):
        container.fetch("/mounted/disk", tmp_path / "disk")
    assert (tmp_path / "victim").read_text() == "untouched"
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((404, {"message": "Could not find the file"}), "Could not find the file"),
        (archive(("disk", None)), "/mounted/disk is not a file"),
        (archive(("disk", b"x" * MIB), cut=MIB // 2), "the stream was cut short: unexpected end of data"),
        (archive(), "/mounted/disk is not a file"),
    ],
)
def test_fetch_reports_what_is_wrong(
    container: DockerContainer, server: FakeEngine, answer: Answer, words: str, tmp_path: Path
) -> None:
    server.answers["GET /containers/0123/archive"] = answer
    with pytest.raises(EngineError, match=f"copying /mounted/disk out of container db failed: .*{words}"):
        container.fetch("/mounted/disk", tmp_path / "disk")


def silent(begin: bytes) -> Answer:
    """Begin to answer, then send nothing until the caller hangs up."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.wfile.write(begin)
        request.rfile.read(1)

    return answer


def test_run_limits_silence(container: DockerContainer, server: FakeEngine) -> None:
    begin = b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"

    def talk(request: BaseHTTPRequestHandler) -> None:
        request.wfile.write(begin)
        for _ in range(8):
            time.sleep(0.3)
            request.wfile.write(struct.pack(">BxxxL", 1, 1) + b".")

    server.answers |= {
        "POST /containers/0123/exec": (201, {"Id": "e"}),
        "POST /exec/e/start": talk,
        "GET /exec/e/json": (200, {"ExitCode": 0}),
    }
    assert container.run(["evidence"], patience=2.0) == (0, b"........")
    server.answers["POST /exec/e/start"] = silent(begin)
    with pytest.raises(EngineError, match=r"^evidence in db was silent for 0\.1 s$"):
        container.run(["evidence"], patience=0.1)


@pytest.mark.parametrize("sent", [b"", b"x" * MIB])
def test_fetch_gives_up_when_the_engine_hangs(
    engine: DockerEngine, server: FakeEngine, sent: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-tar\r\nContent-Length: 9999999\r\n\r\n"
    entry = tarfile.TarInfo("disk")
    entry.size = 9 * MIB
    server.answers["GET /containers/0123/archive"] = silent(head + entry.tobuf() + sent)
    container = engine.create(PLAN, "run")
    monkeypatch.setattr(engine.api, "timeout", 0.2)
    with pytest.raises(EngineError, match=r"copying /mounted/disk out of container db failed: .*Read timed out"):
        container.fetch("/mounted/disk", tmp_path / "disk")
    assert server.asked.count("GET /containers/0123/archive") == 1
    pieces = container.archive("/mounted/disk")
    assert pieces is not None
    with pytest.raises(EngineError, match=r"copying /mounted/disk out of container db failed: .*Read timed out"):
        list(pieces)


def test_put_sets_the_current_time(monkeypatch: pytest.MonkeyPatch) -> None:
    archives: list[bytes] = []
    monkeypatch.setattr(DockerContainer, "put_archive", lambda _self, _folder, data: archives.append(data))
    DockerContainer.put(
        object.__new__(DockerContainer), "/store", {"manifest.json": b"{}", "image": Link("/store/disk")}
    )
    with tarfile.open(fileobj=io.BytesIO(archives[0])) as tar:
        assert all(abs(entry.mtime - time.time()) < 60 for entry in tar.getmembers())


ON_LAB = {"lab": {"MacAddress": "02:42:0A:01:02:03", "IPAddress": "10.1.2.3", "IPPrefixLen": 24}}
NOT_CONNECTED = (500, {"message": "container 0123 is not connected to network lab"})


def about(networks: object) -> Answer:
    return 200, {"Id": "0123", "NetworkSettings": {"Networks": networks}}


def test_addresses_are_read_again_on_refresh() -> None:
    with serving({**CREATED, "GET /containers/0123/json": about(ON_LAB)}) as server:
        engine = DockerEngine(server.url)
        container = engine.create(PLAN, "run")
        assert container.addresses("lab").address == "10.1.2.3"
        server.answers["GET /containers/0123/json"] = about(None)
        assert container.addresses("lab").address == "10.1.2.3"
        assert container.addresses("lab", refresh=True).address == ""
        engine.close()


@pytest.mark.parametrize("networks", [{}, ON_LAB], ids=["already disconnected", "it does not go"])
def test_disconnect_ignores_a_lost_network(networks: object) -> None:
    answers = {"POST /networks/lab/disconnect": NOT_CONNECTED, "GET /containers/0123/json": about(networks)}
    with serving({**CREATED, **answers}) as server:
        engine = DockerEngine(server.url)
        container = engine.create(PLAN, "run")
        if networks:
            with pytest.raises(EngineError, match=r"disconnecting db from network lab failed: .* is not connected"):
                container.disconnect("lab")
        else:
            container.disconnect("lab")
        engine.close()


def test_a_container_without_networks_can_be_adopted() -> None:
    found = {
        "Id": "0123",
        "Name": "/virtainers-web",
        "Config": {"Env": []},
        "HostConfig": {"NetworkMode": "virtainers-default"},
        "NetworkSettings": {"Networks": None},
    }
    with serving() as server:
        engine = DockerEngine(server.url)
        assert DockerContainer.adopt(engine, found).network == "virtainers-default"
        engine.close()


def test_a_container_is_created_with_its_mounts_and_without_a_network() -> None:
    with serving({"POST /containers/create": (201, {"Id": "0123", "Warnings": []})}) as server:
        engine = DockerEngine(server.url)
        binds = (Bind("/store/guests/g", "/volumes/g"), Bind("/store", "vol", writable=True))
        engine.create(Plan(name="x", kind="helper", image="an-image", binds=binds, offline=True), "run")
        host = json.loads(server.sent[-1])["HostConfig"]
        engine.close()
    assert host["NetworkMode"] == "none"
    assert host["CapDrop"] == ["ALL"]
    assert [(each["Type"], each["Source"], each["Target"], each["ReadOnly"]) for each in host["Mounts"]] == [
        ("bind", "/volumes/g", "/store/guests/g", True),
        ("volume", "vol", "/store", False),
    ]
