"""Software for a different processor than this machine's: built, installed and run there."""

from pathlib import Path

import pytest

from pytest_virtainers import VM

# The image is built once, in half an hour; the machine boots once, in some minutes.
pytestmark = [pytest.mark.thorough, pytest.mark.virtainer("arm", arch="arm64", boot_timeout=900)]


def test_it_runs_on_another_processor(vm: VM, tmp_path: Path) -> None:
    assert vm.run("uname -m; dpkg --print-architecture").stdout.split() == ["aarch64", "arm64"]
    assert vm.screen.screenshot(tmp_path / "screen.png").read_bytes().startswith(b"\x89PNG")


def test_each_test_has_a_fresh_one(vm: VM) -> None:
    assert not vm.run("test -e /srv/mark", check=False)
    vm.run("touch /srv/mark; sync", sudo=True)
    vm.reboot()
    assert vm.run("test -e /srv/mark")
