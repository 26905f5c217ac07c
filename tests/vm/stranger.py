"""A container that is not a virtainer, on a separate network."""

import contextlib
import secrets
import time
from collections.abc import Iterator

from pytest_virtainers.engine.base import Container
from pytest_virtainers.engine.docker.engine import DockerEngine
from pytest_virtainers.engine.plan import NetworkPlan, Plan, Port

PORT = 8080
_IS_UP = f"import socket; socket.create_connection(('127.0.0.1', {PORT}), 3).close()"


@contextlib.contextmanager
def web_server(engine: DockerEngine, runtime_image: str) -> Iterator[Container]:
    """Run a web server; its network has the same name, and others on that also find it as `db`."""
    run = secrets.token_hex(4)
    with contextlib.ExitStack() as stack:
        network = engine.create_network(NetworkPlan(f"stranger-{run}"), run)
        stack.callback(network.close)
        serve = ("sh", "-c", f"python3 -m http.server {PORT} & exec cat")
        port = Port(network.name, aliases=("db",))
        container = engine.create(Plan(network.name, "helper", runtime_image, entrypoint=serve, port=port), run)
        stack.callback(container.close)
        container.start()
        deadline = time.monotonic() + 120
        while container.run(["python3", "-c", _IS_UP])[0] != 0:
            assert time.monotonic() < deadline
        yield container
