from pytest_virtainers.engine import ownership
from pytest_virtainers.engine.docker.engine import DockerEngine
from tests.unit.fake_engine import Answer, serving

IN_USE = (409, {"message": "volume is in use"})


def test_sweep_removes_volumes_of_dead_owners_only() -> None:
    lives = ownership.labels("disk", "run")
    dead = {**lives, "virtainers.owner-started": "1"}
    volumes = [
        {"Name": name, "Labels": labels} for name, labels in (("a", dead), ("b", lives), ("c", dead), ("d", None))
    ]
    answers: dict[str, Answer] = {
        "GET /containers/json": (200, []),
        "GET /networks": (200, []),
        "GET /volumes": (200, {"Volumes": volumes}),
        "DELETE /volumes/a": IN_USE,
        "DELETE /volumes/c": (204, None),
    }
    with serving(answers) as server:
        engine = DockerEngine(server.url)
        assert engine.sweep() == ["c"]
        server.answers["GET /volumes"] = (200, {"Volumes": None})
        assert engine.sweep() == []
        engine.close()


def test_sweep_of_a_run_ignores_whether_its_process_is_alive() -> None:
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
        engine = DockerEngine(server.url)
        assert engine.sweep("ours") == ["c1", "half-made", "n1", "v1"]
        assert [each for each in server.asked if each.startswith("DELETE")] == [
            "DELETE /containers/c1",
            "DELETE /containers/c4",
            "DELETE /networks/n1",
            "DELETE /volumes/v1",
            "DELETE /volumes/v2",
        ]
        engine.close()
