"""The web page with noVNC, in front of a fake VNC server."""

import contextlib
import gc
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin

from pytest_virtainers.vm import page
from pytest_virtainers.vm.screen import Display

FILES = {"/vnc.html": b"<title>noVNC</title>", "/app/ui.js": b"import x", "/app/icon.svg": b"<svg/>"}
HELLO = b"RFB 003.008\n"


def greet(server: socket.socket) -> None:
    """Greet each caller, echo its messages, and hang up after `bye`."""
    while True:
        try:
            caller, _ = server.accept()
        except OSError:
            return
        with caller:
            caller.sendall(HELLO)
            while (said := caller.recv(100)) not in (b"", b"bye"):
                caller.sendall(said)


@pytest.fixture
def display() -> Iterator[Display]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        greeting = threading.Thread(target=greet, args=(server,))
        greeting.start()
        yield Display("127.0.0.1", server.getsockname()[1], "se-cret_")
        server.shutdown(socket.SHUT_RDWR)
        greeting.join()


def open_files() -> int:
    gc.collect()  # it closes the poller of websockets
    return len(list(Path("/proc/self/fd").iterdir()))


def asked(origin: str, path: str) -> bytes:
    """Request a path unchanged, which browsers would normalize first; return the first line of the answer."""
    place = urlsplit(origin)
    with socket.create_connection((str(place.hostname), place.port), timeout=10) as server:
        server.sendall(f"GET {path} HTTP/1.1\r\nHost: {place.netloc}\r\n\r\n".encode())
        return server.makefile("rb").readline()


def test_the_page_and_its_files_are_served(display: Display) -> None:
    with page.serving(FILES, display, 0) as url:
        origin, _, fragment = url.partition("/vnc.html#")
        assert origin.startswith("http://127.0.0.1:")
        assert fragment == "autoconnect=true&resize=scale&password=se-cret_"
        for path, kind in (("/vnc.html?x=1", "html"), ("/app/ui.js", "javascript"), ("/app/icon.svg", "svg+xml")):
            reply = requests.get(origin + path, timeout=10)
            assert reply.content == FILES[path.partition("?")[0]]
            assert reply.headers["Content-Type"].endswith(kind)
        for path in ("/", "/app/", "/../etc/passwd", "/app/../../etc/passwd", "/%2e%2e/etc/passwd"):
            assert b" 404 " in asked(origin, path)
    with pytest.raises(requests.ConnectionError):
        requests.get(url, timeout=10)


def test_a_browser_talks_with_the_display_until_one_of_them_hangs_up(display: Display) -> None:
    with page.serving(FILES, display, 0) as url:
        origin = url.partition("/vnc.html")[0]
        screen = f"{origin.replace('http', 'ws')}/websockify"
        for _ in range(2):
            with connect(screen, origin=Origin(origin)) as browser:
                assert browser.recv(timeout=10) == HELLO
                browser.send(b"a" * 50)
                assert browser.recv(timeout=10) == b"a" * 50
        with connect(screen, origin=Origin(origin)) as browser:
            assert browser.recv(timeout=10) == HELLO
            browser.send(b"bye")
            with pytest.raises(ConnectionClosed):
                browser.recv(timeout=10)


def test_closing_waits_for_no_browser_and_leaves_no_files_open(display: Display) -> None:
    with page.serving(FILES, display, 0):
        pass  # late imports have happened
    before = open_files()
    started = time.monotonic()
    with contextlib.ExitStack() as browsers, page.serving(FILES, display, 0) as url:
        origin = url.partition("/vnc.html")[0]
        place = urlsplit(origin)
        browsers.enter_context(socket.create_connection((str(place.hostname), place.port)))  # stays silent
        screen = browsers.enter_context(connect(f"{origin.replace('http', 'ws')}/websockify", origin=Origin(origin)))
        assert screen.recv(timeout=10) == HELLO
    assert time.monotonic() - started < 8
    while open_files() > before and time.monotonic() - started < 12:
        time.sleep(0.1)  # the server behind the display closes its side, too
    assert open_files() <= before


@pytest.mark.parametrize("origin", [Origin("http://elsewhere"), None])
def test_pages_of_other_servers_are_refused(display: Display, origin: Origin | None) -> None:
    with page.serving(FILES, display, 0) as url, pytest.raises(InvalidStatus, match="403"):
        connect(url.partition("/vnc.html")[0].replace("http", "ws") + "/websockify", origin=origin)


def test_a_port_in_use_is_an_error(display: Display) -> None:
    with pytest.raises(OSError, match="in use"), page.serving(FILES, display, display.port):
        pass
