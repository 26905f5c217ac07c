"""The guest's screen over VNC, with a viewer by RFC 6143."""

import socket
import struct
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin

from pytest_virtainers import VM
from tests.vm.browser import browsing
from tests.vm.vnc_viewer import Viewer


def test_a_viewer_sees_the_screen_and_types(session_vm: VM, tmp_path: Path) -> None:
    size = struct.unpack(">II", session_vm.screen.screenshot(tmp_path / "screen.png").read_bytes()[16:24])
    with session_vm.screen.vnc() as display:
        assert str(display) == f"vnc://127.0.0.1:{display.port}"
        with Viewer(display.port, display.password) as viewer, Viewer(display.port, display.password) as other:
            assert (viewer.width, viewer.height) == (other.width, other.height) == size
            assert "vm" in viewer.name
            assert len(set(viewer.picture())) > 1, "an empty screen"
            assert other.picture()
            viewer.type("seen-by-vnc")
            session_vm.wait_until_succeeds("grep -a seen-by-vnc /dev/vcs1", sudo=True)
            viewer.type("\b" * len("seen-by-vnc"))
            session_vm.wait_until_fails("grep -a seen-by-vnc /dev/vcs1", sudo=True)
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", display.port), timeout=5)


def test_only_the_served_page_gets_the_screen(session_vm: VM) -> None:
    with session_vm.screen.novnc() as url:
        place = urlsplit(url)
        assert (place.hostname, place.path) == ("127.0.0.1", "/vnc.html")
        assert "password=" in place.fragment, "which browsers do not send"
        page = requests.get(url, timeout=30)
        assert "noVNC" in page.text
        assert page.headers["Content-Type"] == "text/html"
        assert (
            requests.get(f"http://{place.netloc}/app/ui.js", timeout=30).headers["Content-Type"] == "text/javascript"
        )
        screen = f"ws://{place.netloc}/websockify"
        with connect(screen, origin=Origin(f"http://{place.netloc}")) as browser:
            assert browser.recv(timeout=60) == b"RFB 003.008\n"
            browser.send(b"RFB 003.008\n")
            assert browser.recv(timeout=60) == b"\x01\x02", "viewers without a password are refused"
        for origin in (Origin("http://elsewhere"), None):
            with pytest.raises(InvalidStatus, match="403"):
                connect(screen, origin=origin)
    with pytest.raises(requests.ConnectionError):
        requests.get(url, timeout=5)


@pytest.mark.thorough
def test_a_browser_shows_the_screen_and_types(vm: VM, tmp_path: Path) -> None:
    with vm.screen.novnc() as url, browsing(url) as page:
        page.wait_until("document.documentElement.classList.contains('noVNC_connected')")
        canvas = "document.querySelector('#noVNC_container canvas')"
        pixels = f"{canvas}.getContext('2d').getImageData(0, 0, {canvas}.width, {canvas}.height).data"
        page.wait_until(f"new Set(new Uint32Array({pixels}.buffer)).size > 1")
        width, height = struct.unpack(">II", vm.screen.screenshot(tmp_path / "screen.png").read_bytes()[16:24])
        assert page.value(f"`${{{canvas}.width}} ${{{canvas}.height}}`") == f"{width} {height}"
        page.type("seeninabrowser")
        vm.wait_until_succeeds("grep -a seeninabrowser /dev/vcs1", sudo=True)
        (tmp_path / "page.png").write_bytes(page.png())
        assert (tmp_path / "page.png").stat().st_size > 5000, "an empty page"


def test_viewers_without_the_password_are_refused(session_vm: VM) -> None:
    with session_vm.screen.vnc() as display, Viewer(display.port, "guessed!") as viewer:
        assert viewer.refusal
    with session_vm.screen.vnc() as one, session_vm.screen.vnc() as two:
        for display, other in ((one, two), (two, one)):
            with Viewer(display.port, display.password) as viewer, Viewer(display.port, other.password) as stranger:
                assert stranger.refusal, "each block has its own password"
                assert viewer.picture()
