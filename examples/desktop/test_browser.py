"""A program with windows, used as a person would: keys, a click, and the screen."""

from pathlib import Path

import pytest

from pytest_virtainers import VM

# Its image is built first, which takes minutes.
pytestmark = [
    pytest.mark.thorough,
    pytest.mark.virtainer("desk", image="debian-13-desktop", ram="1G", disk="10G"),
]

FIRST = (
    f"<html><title>First</title><body><h1><a href='second.html'>{'to the second page ' * 300}</a></h1></body></html>"
)
SECOND = "<html><title>Second</title><body bgcolor='#208020'></body></html>"


def shows(vm: VM, title: str) -> None:
    """Wait until a window with this title is seen."""
    vm.wait_until_succeeds(f"DISPLAY=:0 xdotool search --onlyvisible --name {title}")


def test_a_link_leads_to_another_page(vm: VM, tmp_path: Path) -> None:
    vm.write_text("/srv/first.html", FIRST, owner="root")
    vm.write_text("/srv/second.html", SECOND, owner="root")
    shows(vm, "Welcome")
    vm.screen.send_keys("ctrl-l")
    vm.screen.type("file:///srv/first.html\n")
    shows(vm, "First")
    before = vm.screen.screenshot(tmp_path / "first.png").read_bytes()
    vm.screen.click(640, 400)
    shows(vm, "Second")
    assert vm.screen.screenshot(tmp_path / "second.png").read_bytes() != before
