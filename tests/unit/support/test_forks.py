"""A forked child cannot use or disturb the objects of its parent."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import inspect
import json
import multiprocessing
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_virtainers import VirtainerError
from pytest_virtainers.config.network_spec import DEFAULT
from pytest_virtainers.engine import host
from pytest_virtainers.engine.docker import podman_service
from pytest_virtainers.engine.docker.engine import DockerEngine
from pytest_virtainers.engine.docker.streams import HijackedSocket
from pytest_virtainers.engine.plan import NetworkPlan, Plan
from pytest_virtainers.launching.isolation import Isolation
from pytest_virtainers.ssh import client
from pytest_virtainers.store.locks import SharedLocks, is_locked
from pytest_virtainers.support import paths
from pytest_virtainers.vm import tunnels
from pytest_virtainers.vm.access import Access
from pytest_virtainers.vm.capture import Capture
from pytest_virtainers.vm.disks import Disks
from pytest_virtainers.vm.faults import Faults
from pytest_virtainers.vm.machine import Machine
from pytest_virtainers.vm.network import Network
from pytest_virtainers.vm.nics import Nics
from pytest_virtainers.vm.process import Process
from pytest_virtainers.vm.screen import Screen
from pytest_virtainers.vm.shell import Leader
from pytest_virtainers.vm.vm import VM
from tests.unit.fake_engine import Answer, serving
from tests.unit.memory_engine import MemoryEngine
from tests.unit.ssh.fake_sshd import SECONDS, Wire, execute
from tests.unit.vm import fake_container
from tests.unit.vm.fake_stream import Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_CHILD_SECONDS = 60


class Child:
    """A forked child that runs a function; as a context manager, it lives until the end of the block."""

    def __init__(self, function: Callable[[], object]) -> None:
        from_child, to_parent = os.pipe()
        go, self._go = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self._go)
                os.write(to_parent, json.dumps(_outcome(function)).encode())
                os.close(to_parent)
                os.read(go, 1)
            finally:
                os._exit(0)
        os.close(to_parent)
        os.close(go)
        self._answer = from_child

    def __enter__(self) -> Any:
        with os.fdopen(self._answer, "rb") as answer:
            timer = threading.Timer(_CHILD_SECONDS, os.kill, (self.pid, 9))
            timer.start()
            text = answer.read()
            timer.cancel()
        assert text, "the child hung"
        return json.loads(text)

    def __exit__(self, *_: object) -> None:
        os.close(self._go)
        os.waitpid(self.pid, 0)


def _outcome(function: Callable[[], object]) -> object:
    try:
        return function()
    except BaseException as error:  # noqa: BLE001  (sent to the parent)
        return f"{type(error).__name__}: {error}"


def in_child(function: Callable[[], object]) -> Any:
    """Return the result or the exception of a function in a forked child."""
    with Child(function) as answer:
        return answer


def refusal(what: str) -> str:
    return f"VirtainerError: {what} belongs to process {os.getpid()}; its forked child "


# SSH


@pytest.fixture
def wire() -> Iterator[Wire]:
    wire = Wire()
    yield wire
    wire.close()


@pytest.fixture
def connection(wire: Wire) -> Iterator[client.Connection]:
    connection = wire.log_in()
    yield connection
    connection.close()
    connection.transport.join(SECONDS)


def test_a_child_cannot_write_to_the_ssh_session(connection: client.Connection) -> None:
    assert connection.open_ahead(SECONDS)
    channels = [connection.transport.open_session()]

    def use() -> object:
        failures = []
        for attempt in (lambda: execute(connection), lambda: channels[0].exec_command("first")):
            try:
                attempt()
            except Exception as error:  # noqa: BLE001
                failures.append(type(error).__name__)
        for _ in range(3):
            channels.append(channels[0])  # paramiko's finalizer of it would send a message to the server
        channels.clear()
        connection.close_ahead()
        connection.transport.close()
        connection.close()
        gc.collect()
        return [connection.alive, connection.answers(1), len(failures)]

    assert in_child(use) == [False, False, 2]
    assert execute(connection) == (b"FIRST", 7)
    assert connection.answers(SECONDS)


def test_a_command_continues_when_a_child_drops_its_session(connection: client.Connection, wire: Wire) -> None:
    outcome: list[object] = []
    running = threading.Thread(target=lambda: outcome.append(execute(connection, "slow")))
    running.start()
    while not wire.sshd.channels:
        time.sleep(0.01)

    def leave() -> object:
        with contextlib.suppress(Exception):
            execute(connection)
        connection.close()
        gc.collect()
        return "left"

    assert in_child(leave) == "left"
    wire.sshd.may_close.set()
    running.join(SECONDS)
    assert outcome == [(b"SLOW", 7)]


def test_session_locks_of_other_threads_do_not_block_a_child(connection: client.Connection) -> None:
    channel = connection.transport.open_session()
    with connection._asking, channel.lock:

        def leave() -> object:
            connection.answers(1)
            channel.close()
            connection.close()
            return "left"

        assert in_child(leave) == "left"


def test_a_connection_ends_with_its_process_while_a_child_lives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        sock = client.dial("127.0.0.1", 5, server.getsockname()[1])
        guest, _ = server.accept()
        with guest, Child(lambda: "lives"):
            sock.close()
            guest.settimeout(5)
            with pytest.raises(ConnectionResetError):
                guest.recv(1)


# Locks and folders


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "pytest-virtainers"


def has_lock(path: Path) -> bool:
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_a_child_neither_releases_nor_keeps_a_lock(cache: Path) -> None:
    with contextlib.ExitStack() as block:
        lock = block.enter_context(paths.locked("store"))
        with Child(lambda: "lives"):
            assert in_child(lock.close) is None
            assert has_lock(cache / "store.lock")
            block.close()
            assert not has_lock(cache / "store.lock"), "the child still runs"


def test_a_child_neither_releases_nor_keeps_shared_locks(cache: Path) -> None:
    holds = SharedLocks()
    holds.add("templates/abc")
    with holds._lock:
        child = Child(holds.close)
    with child as answer:
        assert answer is None
        assert is_locked("templates/abc")
        holds.close()
        assert not is_locked("templates/abc"), "the child still runs"


LEAVES = """
import os, sys
from pathlib import Path
from pytest_virtainers.engine import scratch

folder = scratch.Folder("ssh")
child = os.fork()
if child == 0:
    sys.exit(0)
os.waitpid(child, 0)
print(Path(folder.name).is_dir(), folder.name)
"""


def test_an_exiting_child_does_not_remove_files_of_its_parent(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", LEAVES],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    there, name = ran.stdout.split()
    assert there == "True", "after the child has ended"
    assert name.startswith(str(tmp_path))
    assert list(tmp_path.iterdir()) == [], "after the parent has"


def test_an_address_watch_ends_while_a_child_lives() -> None:
    before = {each.name for each in threading.enumerate()}
    watch = host.AddressWatch(lambda: None)
    threads = [each for each in threading.enumerate() if each.name == "addresses" and each.name not in before]
    assert threads, "it has begun"
    with Child(lambda: "lives") as answer:
        assert answer == "lives"
        watch.close()
        threads[0].join(SECONDS)
        assert not threads[0].is_alive()


def test_isolation_locks_do_not_block_a_child() -> None:
    isolation = Isolation(SimpleNamespace(is_local=False))
    with isolation._lock:
        assert in_child(isolation.close) is None


# The engine

ANSWERS: dict[str, Answer] = {
    "POST /containers/create": (201, {"Id": "0123", "Warnings": []}),
    "DELETE /containers/0123": (204, None),
    "POST /networks/create": (201, {"Id": "n"}),
    "DELETE /networks/net": (204, None),
}


def test_a_child_sends_no_requests_to_its_parents_engine() -> None:
    with serving(ANSWERS) as server:
        engine = DockerEngine(server.url)
        container = engine.create(Plan(name="web", kind="vm", image="i"), "run")
        network = engine.create_network(NetworkPlan("net"), "run")
        asked = len(server.asked)
        before = refusal(f"the connection to {server.url}")
        assert in_child(engine.api.version).startswith(before)
        assert in_child(engine.memory_mib).startswith(before)
        assert in_child(lambda: container.put("/", {})).startswith(refusal("the container web"))
        assert in_child(lambda: container.run(["true"])).endswith("cannot use it. Use a thread.")

        def close() -> object:
            container.close()
            container.remove()
            network.close()
            engine.close()
            gc.collect()
            return "closed"

        assert in_child(close) == "closed"
        assert len(server.asked) == asked
        network.close()
        container.close()
        assert server.asked[asked:] == ["DELETE /networks/net", "DELETE /containers/0123"]
        engine.close()


def test_a_child_has_no_pooled_connections_of_its_parent() -> None:
    with serving() as server:
        engine = DockerEngine(server.url)
        api: Any = engine.api
        (pool,) = api.get_adapter("http://").poolmanager.pools._container.values()
        kept = pool.pool
        ours, theirs = socket.socketpair()
        kept.queue[-1] = SimpleNamespace(sock=ours, close=ours.close)

        def look() -> object:
            with contextlib.suppress(Exception):
                while True:
                    assert kept.get(block=False) is None
            return ours.fileno()

        with kept.mutex:  # as if another thread used one of them
            child = Child(look)
        with child as answer:
            assert answer == -1
        assert ours.fileno() > 0
        ours.close()
        theirs.close()
        kept.queue[-1] = None
        engine.close()


def test_closing_a_stream_in_a_child_does_not_shut_it_down() -> None:
    ours, theirs = socket.socketpair()
    stream = HijackedSocket(ours)

    def close() -> object:
        stream.close_input()
        stream.close()
        return "closed"

    assert in_child(close) == "closed"
    stream.send(b"open")
    assert theirs.recv(10) == b"open"
    stream.close()
    theirs.close()


SERVICE = """#!/bin/sh
for url; do :; done
exec python3 -c 'import socket, sys, time
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen()
time.sleep(60)' "${url#unix://}"
"""


def test_a_podman_service_ends_with_its_process_not_with_a_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    podman = tmp_path / "podman"
    podman.write_text(SERVICE)
    podman.chmod(0o755)
    service = podman_service.PodmanService(str(podman))
    path = Path(service.url.removeprefix("unix://"))
    with Child(lambda: "lives"):
        assert in_child(service.stop) is None
        assert service._keeper.poll() is None
        assert podman_service.answers(path)
        service.stop()
        assert not path.exists(), "the child still runs"


# The VM

ARGUMENTS: dict[str, tuple[object, ...]] = {
    "wait_for": (lambda: True,),
    "wait_for_console": ("x",),
    "wait_for_file": ("/x",),
    "wait_for_port": (1,),
    "wait_for_closed_port": (1,),
    "put": (__file__, "/tmp/"),
    "get": ("/etc/hostname", "/nowhere/x"),
    "write_text": ("/tmp/x", "text"),
    "glob": ("/*",),
    "forward": (80,),
    "reverse": (80,),
    "disks.add": ("1G",),
    "disks.remove": (SimpleNamespace(name="x"),),
    "nics.remove": (SimpleNamespace(name="x", network=None),),
    "faults.set_time": (0,),
    "screen.click": (1, 2),
    "screen.send_keys": ("enter",),
    "machine.wait_until_cloned": (None,),
}
GROUPS = {"disks": Disks, "nics": Nics, "screen": Screen, "faults": Faults, "access": Access, "machine": Machine}
# A child may use these: they are data, or open a new connection.
HARMLESS = {
    *(
        "access.ssh_command",
        "access.ssh_config",
        "access.testinfra",
        "access.ansible_vars",
        "access.ansible_inventory",
    ),
    *("name", "spec", "user", "ip", "network", "networks", "log", "machine.ip", "machine.disown", "machine.scaled"),
    *(f"nics.{name}" for name in ("get", "items", "keys", "values")),
}
# Those that return an object; the object refuses to work in a child.
FACTS: dict[str, object] = {"machine.alive": False, "machine.runs": False}


@pytest.fixture
def vm() -> VM:
    made = fake_container.machine(fake_container.Container(fake_container.RUNS))
    endpoint: Any = made.machine.endpoint
    endpoint.engine = MemoryEngine(kind="podman", url="unix:///x")
    return made


def use(vm: VM, name: str) -> object:
    """Use a public attribute of a VM or of one of its groups."""
    group, _, attribute = name.rpartition(".")
    found = getattr(getattr(vm, group) if group else vm, attribute)
    if attribute == "console":
        return found.text
    if not callable(found):
        return found
    required = [
        each
        for each in inspect.signature(found).parameters.values()
        if each.default is each.empty and each.kind is each.POSITIONAL_OR_KEYWORD
    ]
    given = found(*ARGUMENTS.get(name, tuple("x" for _ in required)))
    return given.__enter__() if hasattr(given, "__enter__") else given


def public(kind: type, prefix: str = "") -> set[str]:
    return {f"{prefix}{name}" for name in dir(kind) if not name.startswith("_")}


PUBLIC = (public(VM) - GROUPS.keys()).union(*(public(kind, f"{name}.") for name, kind in GROUPS.items())) - HARMLESS


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_using_a_vm_in_a_child_raises_a_clear_error(vm: VM, name: str) -> None:
    answer = in_child(lambda: use(vm, name))
    if name in FACTS:
        assert answer == FACTS[name]
    else:
        assert answer.startswith(refusal("vm: this VM"))
        assert answer.endswith("cannot use it. Use a thread, or open a new session with vm.access.ssh_command.")


def test_a_child_can_read_the_description_of_a_vm(vm: VM) -> None:
    assert in_child(lambda: repr(vm)) == "<VM vm (debian-13) at 10.0.0.2>"


def test_forking_multiprocessing_gets_the_same_error(vm: VM) -> None:
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()

    def work(machine: VM) -> None:
        try:
            machine.run("true")
        except VirtainerError as error:
            answers.put(str(error))

    worker = context.Process(target=work, args=(vm,))
    worker.start()
    assert f"vm: this VM belongs to process {os.getpid()}; its forked child {worker.pid}" in answers.get()
    worker.join()
    assert worker.exitcode == 0


def test_pickling_a_vm_is_refused_with_a_reason(vm: VM) -> None:
    with pytest.raises(TypeError, match=r"^vm: a VM's handle cannot be sent to another process\. Use a thread, or"):
        pickle.dumps(vm)


def test_a_child_does_not_wait_for_processes_or_keep_their_input_open(tmp_path: Path) -> None:
    received: list[bytes] = []

    def run(stdin: Any, _out: object, _err: object) -> int:
        received.append(stdin.read())
        received.append(stdin.read(1))
        return 0

    process = Process("cat", "web", run, Leader(), lambda *_: None, grace=1)

    def wait() -> None:
        with process, contextlib.suppress(VirtainerError):
            process.wait()
        process.poll()

    with process._changed:
        child = Child(wait)
    with child as answer:
        assert answer.startswith(refusal("'cat' on web"))
        process.write("all of it")
        process.stdin.close()
        assert process.wait(60).exit_code == 0, "the child's copy of the pipe kept it waiting"
    assert received == [b"all of it", b""]


def test_a_tunnel_stays_open_when_a_child_leaves_its_block() -> None:
    def serve(caller: socket.socket, _over: threading.Event) -> None:
        with caller:
            while data := caller.recv(10):
                caller.sendall(data.upper())

    with contextlib.ExitStack() as block:
        port = block.enter_context(tunnels.listening("tunnel", serve))
        with socket.create_connection(("127.0.0.1", port)) as caller:
            caller.settimeout(60)
            caller.sendall(b"one")
            assert caller.recv(10) == b"ONE"
            with Child(block.close) as answer:
                assert answer is None
                caller.sendall(b"two")
                assert caller.recv(10) == b"TWO", "the child has hung up"
                block.close()
                with pytest.raises(OSError, match="refused"):
                    socket.create_connection(("127.0.0.1", port), 5)


def test_a_page_is_served_when_a_child_leaves_its_block() -> None:
    page = pytest.importorskip("pytest_virtainers.vm.page")
    display: Any = SimpleNamespace(host="127.0.0.1", port=1, password="")

    def answers(port: int) -> bool:
        with socket.create_connection(("127.0.0.1", port), 60) as caller:
            caller.sendall(b"GET /vnc.html HTTP/1.1\r\nHost: localhost\r\n\r\n")
            return caller.recv(100).startswith(b"HTTP/1.1 200")

    with contextlib.ExitStack() as block:
        url = block.enter_context(page.serving({"/vnc.html": b"page"}, display, 0))
        port = int(url.split(":")[2].partition("/")[0])
        assert answers(port)
        with Child(block.close) as answer:
            assert answer is None
            time.sleep(0.2)
            assert answers(port)


def test_network_locks_do_not_block_a_child() -> None:
    made: Any = SimpleNamespace(name="n", subnet=None, ipv6=False, driver="bridge", close=lambda: None)
    network = Network(DEFAULT, made)
    groups: Any = (("one",), ("two",))
    held, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with network._lock:
            held.set()
            leave.wait(_CHILD_SECONDS)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    try:
        answers = [
            in_child(lambda: network.partition(*groups).__enter__()),
            in_child(network.heal),
            in_child(network.record),
        ]
        assert in_child(network.close) is None
    finally:
        leave.set()
        holder.join()
    assert all(each.startswith(refusal("the network default")) for each in answers), answers


def test_a_child_reading_a_capture_does_not_move_its_position() -> None:
    header = b"\xd4\xc3\xb2\xa1" + bytes(20)
    capture = Capture()
    stream: Any = Stream(header, bytes(40))
    container: Any = SimpleNamespace(stream=lambda _command: stream)
    vm: Any = SimpleNamespace(name="one", container=container)
    capture.add(vm, "02:00:00:00:00:01")
    (track,) = capture._tracks
    track._thread.join(60)
    end = track._file.tell()

    def look() -> object:
        seen: list[object] = list(track.frames(set(), 0))
        capture.close()
        return seen

    assert in_child(look) == []
    assert track._file.tell() == end
    capture.close()
