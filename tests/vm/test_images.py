"""Guest images from a server, into the store of a real engine."""

import hashlib
import lzma
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_virtainers import images
from pytest_virtainers.engine.client import Engine
from pytest_virtainers.errors import ImageError
from pytest_virtainers.progress import SILENT
from pytest_virtainers.store import Workshop, workshop
from tests.unit.hostile_server import HostileServer, cut

DISK = (bytes(range(256)) * 2)[:-2] + b"\x55\xaa" + bytes(2**20 - 512)


@pytest.fixture
def shop(engine: Engine, runtime_image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workshop]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "store").mkdir()
    with workshop(engine, str(tmp_path / "store"), runtime_image, "images") as found:
        yield found


def image(server: HostileServer) -> str:
    return f"{server.url}#sha256={hashlib.sha256(server.content).hexdigest()}"


def test_a_packed_disk_comes_into_the_store_and_is_fetched_once(server: HostileServer, shop: Workshop) -> None:
    server.content = lzma.compress(DISK)
    server.days = [cut(100)]
    guest = images.ensure(image(server), shop, SILENT)
    assert guest.digest == hashlib.sha256(DISK).hexdigest()
    assert shop.shell(f"sha256sum {guest.disk}").split()[0] == guest.digest
    assert len(server.ranges) == 2
    assert images.ensure(image(server), shop, SILENT) == guest
    assert len(server.ranges) == 2


def test_what_is_no_disk_leaves_nothing(server: HostileServer, shop: Workshop, tmp_path: Path) -> None:
    server.content = b"<html>Please log in</html>" * 1000
    with pytest.raises(
        ImageError, match=f"image {server.url}: this is neither a qcow2 image nor a raw disk with a boot sector"
    ):
        images.ensure(image(server), shop, SILENT)
    server.content = b"QFI\xfb\0\0\0\x03" + bytes(1000)
    with pytest.raises(ImageError, match=f"image {server.url}: the disk is damaged or cut short; qemu-img says"):
        images.ensure(image(server), shop, SILENT)
    assert list((tmp_path / "cache" / "pytest-virtainers" / "downloads").iterdir()) == []
    assert shop.shell("find /store -type f").split() == []
