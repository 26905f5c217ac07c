import json

import docker.errors
import pytest

from pytest_virtainers.engine import detect
from pytest_virtainers.engine.docker.container import Container, Plan
from tests.unit.fake_engine import DOCKER, PODMAN, serving

MIB = 1024 * 1024
ABOUT = {"docker": DOCKER, "podman": PODMAN}
STATS = "GET /containers/db/stats"


def memory_used(kind: str, status: int, said: object) -> int:
    with serving({STATS: (status, said)}, about=ABOUT[kind]) as server:
        engine = detect.find(server.url)
        try:
            return engine.memory_used_mib("db")
        finally:
            engine.close()


def test_what_a_container_takes_is_told_without_page_cache_where_the_engine_tells() -> None:
    assert memory_used("docker", 200, {"memory_stats": {"usage": 90 * MIB, "stats": {"anon": 80 * MIB}}}) == 80
    assert memory_used("docker", 200, {"memory_stats": {"usage": 90 * MIB, "stats": {"rss": 70 * MIB}}}) == 70
    assert memory_used("podman", 200, {"memory_stats": {"usage": 90 * MIB}}) == 90


@pytest.mark.parametrize(("kind", "status"), [("docker", 404), ("docker", 409), ("podman", 409), ("podman", 500)])
def test_a_container_that_has_just_ended_takes_nothing(kind: str, status: int) -> None:
    assert memory_used(kind, status, {"message": "container db is not running"}) == 0


def test_a_container_that_ends_while_docker_answers_takes_nothing() -> None:
    assert memory_used("docker", 200, b"") == 0


def test_other_failures_are_none_of_a_container_that_ended() -> None:
    with pytest.raises(docker.errors.APIError, match="out of luck"):
        memory_used("docker", 500, {"message": "out of luck"})


def test_the_memory_of_the_host_is_asked_for_once() -> None:
    with serving({"GET /info": (200, {"MemTotal": 2048 * MIB})}) as server:
        engine = detect.find(server.url)
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
def test_the_log_of_a_container_is_limited_where_its_driver_can(
    about: dict[str, object], info: dict[str, object] | None, kind: str | None, options: dict[str, str] | None
) -> None:
    answers = {"GET /info": (200, info) if info else (500, {"message": "no"})}
    created = {"POST /containers/create": (201, {"Id": "0123", "Warnings": []})}
    with serving({**answers, **created}, about=about) as server:
        engine = detect.find(server.url)
        Container(engine, Plan(name="db", kind="vm", image="an-image"), "run")
        asked = json.loads(server.sent[-1])["HostConfig"].get("LogConfig")
        assert asked == (None if kind is None else {"Type": kind, "Config": options})
        engine.close()
