"""The protocols of `engine/base.py` on a real engine, with containers that run no VM."""

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_virtainers.engine import detect, ownership, tar
from pytest_virtainers.engine.base import Container, Engine, Network
from pytest_virtainers.engine.plan import Bind, NetworkPlan, Plan, Port
from pytest_virtainers.engine.tar import Link
from pytest_virtainers.errors import EngineError, ImageError

pytestmark = pytest.mark.each_engine

WORKS = ("sh", "-c", "echo to stdout; echo to stderr >&2; exec cat")


@pytest.fixture
def run_id() -> str:
    return f"engine-{secrets.token_hex(4)}"


@pytest.fixture
def network(engine: Engine, run_id: str) -> Iterator[Network]:
    with contextlib.closing(engine.create_network(NetworkPlan(f"virtainers-{run_id}"), run_id)) as made:
        yield made


@pytest.fixture
def plan(network: Network, runtime_image: str, run_id: str) -> Plan:
    return Plan(
        f"virtainers-{run_id}",
        "helper",
        runtime_image,
        entrypoint=WORKS,
        environment={"COLOUR": "red"},
        volume=f"virtainers-{run_id}-disk",
        port=Port(network.name, aliases=("worker",)),
        labels={"virtainers.test": "a test"},
    )


@pytest.fixture
def container(engine: Engine, plan: Plan, run_id: str) -> Iterator[Container]:
    with contextlib.closing(engine.create(plan, run_id)) as made:
        yield made


def test_a_container_from_its_creation_to_its_end(
    engine: Engine, plan: Plan, container: Container, network: Network, run_id: str
) -> None:
    container.put("/", {"note": b"before the start", "link": Link("/note")})
    (listed,) = engine.containers(f"{ownership.LABEL}=helper", f"{ownership.LABEL}.run={run_id}")
    assert (listed.id, listed.name, listed.labels["virtainers.test"]) == (container.id, plan.name, "a test")
    assert listed.state == "created"
    container.start()
    assert container.run(["sh", "-c", "cat /link; echo $COLOUR; exit 3"]) == (3, b"before the startred\n")
    assert container.stdout.wait_for(lambda: bytes(container.stdout) == b"to stdout\n", 20)
    assert container.stderr.wait_for(lambda: bytes(container.stderr) == b"to stderr\n", 20)
    found = container.addresses()
    assert network.subnet is not None
    assert found.address in map(str, network.subnet)
    assert (found.prefix, len(found.mac)) == (24, 17)
    assert engine.memory_used_mib(container.id) < 1000
    assert not container.ended
    container.close()
    assert container.wait(20)
    assert engine.containers(f"{ownership.LABEL}.run={run_id}") == []
    assert engine.volume(f"virtainers-{run_id}-disk") is None
    assert engine.memory_used_mib(listed.id) == 0
    with pytest.raises(EngineError, match=r"has been removed$"):
        container.run(["true"])


def test_files_are_copied_in_and_out(container: Container, tmp_path: Path) -> None:
    container.start()
    pieces = [b"x" * 1000, bytes(2**20), b"y"]
    size = sum(map(len, pieces))
    container.put_archive("/mounted", iter([*tar.large_entry("disk", pieces, size), tar.END]))
    container.fetch("/mounted/disk", tmp_path / "disk")
    assert (tmp_path / "disk").read_bytes() == b"".join(pieces)
    container.put("/mounted", {"small": b"content"})
    assert container.read("/mounted/small") == b"content"
    assert container.run(["stat", "-c", "%a %u", "/mounted/small"]) == (0, b"600 0\n")
    assert tar.read_file(container.archive("/mounted/small") or ()) == b"content"
    assert container.archive("/nowhere") is None
    for action in (lambda: container.read("/nowhere"), lambda: container.fetch("/nowhere", tmp_path / "new")):
        with pytest.raises(EngineError, match=r"^copying /nowhere out of container virtainers-engine-\w+ failed: "):
            action()


def test_a_stream_works_in_both_directions(container: Container) -> None:
    container.start()
    stream = container.stream(["sh", "-c", "read -r line; echo got $line; cat"])
    stream.settimeout(20)
    stream.send(b"this\nand that")
    stream.wait_for_output()
    stream.close_input()
    said = b""
    while data := stream.recv(100):
        said += data
    assert said == b"got this\nand that"
    stream.close()
    with pytest.raises(EngineError, match=r"^sleep in virtainers-engine-\w+ was silent for 0\.2 s$"):
        container.run(["sleep", "60"], patience=0.2)


def test_networks_are_joined_and_left(engine: Engine, container: Container, run_id: str) -> None:
    container.start()
    plan = NetworkPlan(f"virtainers-{run_id}-second", internal=True)
    with contextlib.closing(engine.create_network(plan, run_id)) as second:
        assert second.subnet is not None
        address = str(second.subnet[7])
        assert container.connect(Port(second.name, address=address)).address == address
        known = engine.network(second.name)
        assert (known.subnet, known.driver) == (second.subnet, "bridge")
        (listed,) = [each for each in engine.networks() if each.name == second.name]
        assert (listed.subnets, listed.labels[ownership.LABEL]) == ((second.subnet,), "network")
        container.disconnect(second.name)
        container.disconnect(second.name)
        assert container.addresses(second.name, refresh=True).address == ""
    with pytest.raises(EngineError, match=rf"^there is no network {second.name} on "):
        engine.network(second.name)


def test_a_container_that_is_kept_is_found_and_started_again(engine: Engine, runtime_image: str, run_id: str) -> None:
    command = ("sh", "-c", 'trap "exit 7" TERM; echo started; while :; do sleep 0.1; done')
    plan = Plan(f"virtainers-{run_id}", "helper", runtime_image, command, lease=False, auto_remove=False)
    container = engine.create(plan, run_id)
    try:
        container.start()
        container.keep(f"virtainers-{run_id}-kept")
        container.close()
        with contextlib.closing(detect.find(engine.url)) as other:
            adopted = other.adopt(f"virtainers-{run_id}-kept")
            assert adopted.id == container.id
            assert adopted.labels[ownership.LABEL] == "helper"
            adopted.follow()
            assert adopted.stdout.wait_for(lambda: bytes(adopted.stdout) == b"started\n", 20)
            assert adopted.stop(20) == 7
            assert adopted.wait(20)
            adopted.start()
            assert b"".join(piece for _, piece in adopted.logs(follow=False)).count(b"started") >= 1
            adopted.close()
            assert [each.state for each in engine.containers(f"{ownership.LABEL}.run={run_id}")] == ["running"]
    finally:
        container.remove()
    with pytest.raises(EngineError, match=r"^inspecting container virtainers-engine-\w+-kept failed: "):
        engine.adopt(f"virtainers-{run_id}-kept")


def test_what_a_run_owns_is_swept(engine: Engine, container: Container, network: Network, run_id: str) -> None:
    assert not {container.name, network.name} & set(engine.sweep())
    assert sorted(engine.sweep(run_id)) == sorted([container.name, network.name, f"virtainers-{run_id}-disk"])


def test_mounts_are_read_only_unless_they_are_writable(
    engine: Engine, runtime_image: str, run_id: str, container: Container
) -> None:
    assert container.volume is not None
    binds = (Bind("/read", container.volume), Bind("/write", container.volume, writable=True))
    plan = Plan(f"virtainers-{run_id}-2", "helper", runtime_image, ("cat",), binds=binds, offline=True)
    with contextlib.closing(engine.create(plan, run_id)) as other:
        other.start()
        assert other.run(["sh", "-c", "touch /write/it && ls /read && ! touch /read/it 2>/dev/null"]) == (0, b"it\n")
        assert other.run(["ls", "/sys/class/net"]) == (0, b"lo\n")


def test_images_are_built_and_known(engine: Engine, runtime_image: str, run_id: str) -> None:
    found = engine.image(runtime_image)
    assert found is not None
    assert (found.arch, found.labels[ownership.LABEL]) == (engine.arch, "image")
    assert engine.image("localhost/virtainers-test/none") is None
    lines: list[str] = []
    context = tar.entry("Dockerfile", b"FROM localhost/virtainers-test/none\n") + tar.END
    with pytest.raises((ImageError, EngineError), match=r"^building image localhost/virtainers-test/\S+ failed"):
        engine.build(
            context, tag=f"localhost/virtainers-test/{run_id}", arguments={}, labels={}, on_line=lines.append
        )


def test_the_engine_describes_itself(engine: Engine) -> None:
    assert engine.memory_mib() > 100
    assert engine.storage_driver()
    assert engine.command_line()[0] == engine.kind
    assert str(engine).startswith(f"{engine.kind} ")
