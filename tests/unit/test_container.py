import pytest

from pytest_virtainers.engine import detect
from pytest_virtainers.engine.container import Container, Plan
from pytest_virtainers.errors import EngineError
from tests.unit.fake_engine import Answer, serving

CREATED: dict[str, Answer] = {"POST /containers/create": (201, {"Id": "0123", "Warnings": []})}
PLAN = Plan(name="db", kind="vm", image="an-image")


def test_what_the_engine_removes_itself_is_waited_for() -> None:
    with serving(CREATED) as server:
        engine = detect.find(server.url)
        container = Container(engine, PLAN, "run")
        server.answers["DELETE /containers/0123"] = (409, {"message": "removal is already in progress"})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pytest_virtainers.engine.container._END_SECONDS", 0.3)
            with pytest.raises(EngineError, match=r"container db \(0123\) was not removed within 0 s"):
                container.close()
        assert server.asked.count("DELETE /containers/0123") > 1
        container.close()  # once is enough
        engine.close()


def test_an_engine_that_died_meanwhile_is_told_in_words() -> None:
    with serving(CREATED) as server:
        engine = detect.find(server.url)
        container = Container(engine, PLAN, "run")
    with pytest.raises(EngineError, match=r"removing container db failed: podman 4\.9 at tcp.*Connection refused"):
        container.close()
    engine.close()
