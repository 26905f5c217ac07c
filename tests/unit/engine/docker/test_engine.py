import json
from http.server import BaseHTTPRequestHandler

import pytest

from pytest_virtainers.engine.docker.engine import DockerEngine
from pytest_virtainers.engine.facts import Image, Volume
from pytest_virtainers.engine.plan import Plan
from pytest_virtainers.errors import EngineError, ImageError
from tests.unit.fake_engine import DOCKER, PODMAN, Answer, FakeEngine, serving

MIB = 1024 * 1024
ABOUT = {"docker": DOCKER, "podman": PODMAN}
STATS = "GET /containers/db/stats"


def memory_used(kind: str, status: int, said: object) -> int:
    with serving({STATS: (status, said)}, about=ABOUT[kind]) as server:
        engine = DockerEngine(server.url)
        try:
            return engine.memory_used_mib("db")
        finally:
            engine.close()


def test_memory_use_excludes_page_cache_where_known() -> None:
    assert memory_used("docker", 200, {"memory_stats": {"usage": 90 * MIB, "stats": {"anon": 80 * MIB}}}) == 80
    assert memory_used("docker", 200, {"memory_stats": {"usage": 90 * MIB, "stats": {"rss": 70 * MIB}}}) == 70
    assert memory_used("podman", 200, {"memory_stats": {"usage": 90 * MIB}}) == 90


@pytest.mark.parametrize(("kind", "status"), [("docker", 404), ("docker", 409), ("podman", 409), ("podman", 500)])
def test_a_container_that_has_ended_uses_no_memory(kind: str, status: int) -> None:
    assert memory_used(kind, status, {"message": "container db is not running"}) == 0


def test_an_empty_answer_of_docker_means_no_memory() -> None:
    assert memory_used("docker", 200, b"") == 0


def test_memory_use_raises_other_failures() -> None:
    with pytest.raises(EngineError, match=r"reading the memory use of container db failed: .* said: out of luck"):
        memory_used("docker", 500, {"message": "out of luck"})


def test_the_memory_of_the_host_is_read_once() -> None:
    with serving({"GET /info": (200, {"MemTotal": 2048 * MIB})}) as server:
        engine = DockerEngine(server.url)
        assert (engine.memory_mib(), engine.memory_mib()) == (2048, 2048)
        assert server.asked.count("GET /info") == 1
        engine.close()


@pytest.mark.parametrize(
    ("about", "info", "kind", "options"),
    [
        (DOCKER, {"LoggingDriver": "json-file"}, "json-file", {"max-size": "16m", "max-file": "2"}),
        (DOCKER, {"LoggingDriver": "local"}, "local", {"max-size": "16m", "max-file": "2"}),
        (DOCKER, {"LoggingDriver": "journald"}, None, None),
        (DOCKER, None, None, None),
        (PODMAN, None, "", {"max-size": "16m"}),
    ],
)
def test_logs_are_limited_where_the_driver_supports_it(
    about: dict[str, object], info: dict[str, object] | None, kind: str | None, options: dict[str, str] | None
) -> None:
    answers = {"GET /info": (200, info) if info else (500, {"message": "no"})}
    created = {"POST /containers/create": (201, {"Id": "0123", "Warnings": []})}
    with serving({**answers, **created}, about=about) as server:
        engine = DockerEngine(server.url)
        engine.create(Plan(name="db", kind="vm", image="an-image"), "run")
        asked = json.loads(server.sent[-1])["HostConfig"].get("LogConfig")
        assert asked == (None if kind is None else {"Type": kind, "Config": options})
        engine.close()


LOCAL = {"Name": "vol", "Driver": "local", "Mountpoint": "/volumes/vol/_data", "Options": None, "CreatedAt": "now"}


@pytest.mark.parametrize(
    ("odd", "folder"),
    [
        ({}, "/volumes/vol/_data"),
        ({"Driver": "nfs"}, ""),
        ({"Options": {"device": ":/export"}}, ""),
        ({"Mountpoint": ""}, ""),
        ({"Mountpoint": None}, ""),
    ],
)
def test_only_plain_volumes_have_a_folder(odd: dict[str, object], folder: str) -> None:
    with serving({"GET /volumes/vol": (200, LOCAL | odd)}) as server:
        engine = DockerEngine(server.url)
        assert engine.volume("vol") == Volume(folder, "now")
        assert engine.volume("other") is None
        engine.close()


def test_an_image_is_read_with_its_labels() -> None:
    about = {"Id": "sha256:1", "Architecture": "arm64", "Config": {"Labels": {"a": "b"}}}
    with serving({"GET /images/one/json": (200, about), "GET /images/two/json": (200, {"Id": "2"})}) as server:
        engine = DockerEngine(server.url)
        assert engine.image("one") == Image("sha256:1", "arm64", {"a": "b"})
        assert engine.image("two") == Image("2", "", {})
        assert engine.image("none") is None
        engine.close()


def answer(*events: dict[str, str]) -> Answer:
    """Stream these events, as engines do."""
    chunks = [f"{json.dumps(each)}\n".encode() for each in events]

    def write(request: BaseHTTPRequestHandler) -> None:
        while request.headers.get("Transfer-Encoding") and (size := int(request.rfile.readline(), 16)):
            request.rfile.read(size + 2)
        request.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n")
        for each in [*chunks, b""]:
            request.wfile.write(b"%x\r\n%s\r\n" % (len(each), each))

    return write


REFUSED = "dial tcp: lookup registry-1.docker.io: no such host"


@pytest.mark.parametrize(
    ("answers", "last"),
    [
        (answer({"status": "Pulling fs layer"}, {"status": "Download  complete"}), "Download complete"),
        (answer({"status": "Trying"}, {"error": REFUSED}), REFUSED),
        ((500, {"message": REFUSED}), REFUSED),
    ],
    ids=["pulled", "Podman refuses", "Docker refuses"],
)
def test_a_pull_returns_the_last_message(answers: Answer, last: str) -> None:
    with serving({"POST /images/create": answers}) as server:
        engine = DockerEngine(server.url)
        assert engine.pull("debian", lambda _message: None) == last
    assert "Connection refused" in engine.pull("debian", lambda _message: None)
    engine.close()


def build(server: FakeEngine, *events: dict[str, str]) -> list[str]:
    """Build an image `x`; return the lines of the build."""
    lines: list[str] = []
    server.answers["POST /build"] = answer(*events)
    engine = DockerEngine(server.url)
    try:
        engine.build(iter([b"a ", b"context"]), tag="x", arguments={}, labels={}, on_line=lines.append)
    finally:
        engine.close()
    return lines


def test_a_build_sends_its_context_and_passes_lines_on() -> None:
    with serving({"GET /images/x/json": (200, {"Id": "1"})}) as server:
        assert build(server, {"stream": "Step 1/9\nRUN"}, {"stream": "done\n"}) == ["Step 1/9", "RUN", "done"]


def test_a_failed_build_shows_its_last_lines() -> None:
    lines = [{"stream": f"line {number}\n"} for number in range(1, 31)]
    shown = "\n".join(f"  | line {number}" for number in range(12, 31))
    with serving({"GET /images/x/json": (200, {"Id": "an older one"})}) as server:
        with pytest.raises(ImageError) as caught:
            build(server, *lines, {"error": "exit code: 100"})
        assert str(caught.value) == (
            f"building image x failed on podman 4.9 at {server.url}. The last lines of the build:\n"
            f"{shown}\n  | exit code: 100"
        )
        del server.answers["GET /images/x/json"]
        with pytest.raises(ImageError, match=r"(?s)building image x failed .*  \| the end$"):
            build(server, {"stream": "the end"})
