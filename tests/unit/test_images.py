import contextlib
import gzip
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pytest_virtainers import catalogue, contained, contexts, disks, images
from pytest_virtainers.errors import ImageError, SpecError
from pytest_virtainers.progress import Progress
from pytest_virtainers.store import Workshop


def refused(image: str) -> str:
    with pytest.raises(ImageError) as caught:
        images.find(image)
    return str(caught.value)


def test_names_and_aliases_stand_for_entries() -> None:
    entry = images.find("debian-13")
    assert isinstance(entry, catalogue.Recipe)
    assert images.find("debian") is entry
    assert entry.key == f"debian-13-{contexts.digest('debian')}"


def test_a_near_miss_is_suggested() -> None:
    assert refused("debian13") == (
        "no guest image is called 'debian13'; did you mean 'debian-13'? "
        "the catalogue has almalinux-10, almalinux-8, " + refused("debian13").partition("almalinux-8, ")[2]
    )
    assert refused("debian13").endswith("ubuntu-26.04; a path, a URL or docker-image://NAME works, too")
    assert "did you mean" not in refused("zzz")


def test_urls_are_taken() -> None:
    entry = images.find("https://example.org/a%20b/x y.qcow2?z#sha256=" + "0" * 64)
    assert isinstance(entry, catalogue.Published)
    assert (entry.name, entry.user) == ("x-y.qcow2-z", "tester")
    assert entry.key.startswith("x-y.qcow2-z-")
    assert "over http anybody may have changed it" in refused("http://example.org/x.qcow2")


def test_what_is_not_a_disk_is_refused(tmp_path: Path) -> None:
    def made(name: str, content: bytes) -> str:
        (tmp_path / name).write_bytes(content)
        return str(tmp_path / name)

    assert refused(str(tmp_path / "none.qcow2")).endswith("none.qcow2: there is no such file")
    assert refused(str(tmp_path)).endswith("this is a directory, not a disk image")
    assert refused(made("empty", b"")).endswith("empty: the file is empty")
    assert "neither a qcow2, VMDK or VHDX image nor a raw disk" in refused(made("text", b"hello\n" * 1000))
    assert "neither a qcow2, VMDK or VHDX image nor a raw disk" in refused(
        made("odd", b"\0" * 510 + b"\x55\xaa" + b"x")
    )


def test_disks_are_taken(tmp_path: Path) -> None:
    for name, content in (
        ("a.qcow2", b"QFI\xfb" + b"\0" * 100),
        ("b.raw", b"\0" * 510 + b"\x55\xaa" + b"\0" * 512),
        ("c.vmdk", b"KDMV" + b"\0" * 100),
        ("d.vhdx", b"vhdxfile" + b"\0" * 100),
        ("e.qcow2.gz", gzip.compress(b"QFI\xfb")),
    ):
        (tmp_path / name).write_bytes(content)
        assert images.find(str(tmp_path / name)) == tmp_path / name


def test_what_is_old_is_removed_from_the_downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name, days in (("old.part", 15), ("old.disk", 15), ("new.part", 1)):
        path = disks.downloads() / name
        path.touch()
        os.utime(path, (time.time() - days * 86400,) * 2)
    assert [each.name for each in disks.downloads().iterdir()] == ["new.part"]


def test_a_packed_disk_is_unpacked_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    packed = tmp_path / "a.qcow2.gz"
    packed.write_bytes(gzip.compress(b"QFI\xfb" + bytes(100)))
    with Progress(lambda _text: None, live=False).step("copying") as step:
        with disks.unpacked(packed, "a", step) as disk:
            assert disk.read_bytes() == b"QFI\xfb" + bytes(100)
        assert list(disks.downloads().iterdir()) == []
        packed.write_bytes(packed.read_bytes()[:-10])
        with (
            pytest.raises(ImageError, match="its gzip data is cut short"),
            disks.unpacked(packed, "a", step),
        ):
            pass
        packed.write_bytes(gzip.compress(b"no disk at all" * 100))
        with pytest.raises(ImageError, match="this is neither"), disks.unpacked(packed, "a", step):
            pass
    assert list(disks.downloads().iterdir()) == []


@pytest.mark.parametrize("user", ["x\n  ProxyCommand touch /tmp/x", "-oProxyCommand=touch", ""])
def test_a_container_image_that_names_a_strange_user_is_refused(user: str) -> None:
    found = {"Id": "sha256:0123", "Config": {"Labels": {"virtainers.user": user}}}
    api = SimpleNamespace(inspect_image=lambda _reference: found)
    engine = cast("Any", SimpleNamespace(api=api, failures=lambda _action: contextlib.nullcontext()))
    with pytest.raises(
        ImageError, match=r"image docker-image://evil: its label virtainers\.user=.* is wrong: a login name"
    ):
        contained.look(engine, "evil", print)
    with pytest.raises(ImageError, match="image docker-image://: the name of a container image is missing"):
        contained.look(engine, "", print)
    found["Config"] = {"Labels": {"virtainers.user": "debian"}}
    assert contained.look(engine, "good", print) == contained.Prepared("good", "sha256:0123", "debian")


def test_a_container_image_is_named_with_its_scheme() -> None:
    assert images.find("docker-image://localhost/virtainers/debian:13") == "localhost/virtainers/debian:13"


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("debian-13", "localhost/virtainers/debian:13"),
        ("ubuntu-18.04", "localhost/virtainers/ubuntu:18.04"),
        ("centos-stream-9", "localhost/virtainers/centos:stream-9"),
        ("debian", "localhost/virtainers/debian:13"),
    ],
)
def test_a_prepared_virtainer_is_called_after_its_guest(name: str, tag: str) -> None:
    assert contained.tag_for(name, None) == tag


@pytest.mark.parametrize(
    ("given", "tag"),
    [
        ("ours", "ours:latest"),
        ("host:5000/a/b", "host:5000/a/b:latest"),
        ("host:5000/a__b:V1.0", "host:5000/a__b:V1.0"),
    ],
)
def test_it_may_be_called_otherwise(given: str, tag: str) -> None:
    assert contained.tag_for("./my-disk.qcow2", given) == tag


def test_what_it_cannot_be_called() -> None:
    for wrong in ("", "Ours", "a/./b", "a:b/c", "a@sha256:00", "-a", "a:-b"):
        with pytest.raises(SpecError, match="is no name of a container image"):
            contained.tag_for("debian-13", wrong)
    with pytest.raises(SpecError, match=r"my-disk.qcow2 is not in the catalogue: say with --tag"):
        contained.tag_for("./my-disk.qcow2", None)


class Helper:
    """A container in which `qemu-img check` ends as told."""

    def __init__(self, check: int, more: str = "") -> None:
        self.check, self.more = check, more
        self.put_names: list[str] = []

    def put_archive(self, _folder: str, archive: Any) -> None:
        b"".join(archive)

    def run(self, command: list[str], _on_output: object = None) -> tuple[int, bytes]:
        if command[0] == "sh":
            return 0, b"512\n 51 46 49 fb\n"
        if command[1] == "info":
            return 0, f'{{"format": "qcow2", "virtual-size": 1024{self.more}}}'.encode()
        return self.check, b"what it found"

    def put(self, _folder: str, members: dict[str, bytes]) -> None:
        self.put_names += members


def copied(tmp_path: Path, check: int, more: str = "") -> list[str]:
    (tmp_path / "a.qcow2").write_bytes(b"QFI\xfb")
    helper = Helper(check, more)
    shop = Workshop(cast("Any", helper), "a-store")
    with Progress(lambda _text: None, live=False).step("copying") as step:
        disks.send(tmp_path / "a.qcow2", "a.qcow2", shop, "/store/.scratch", step)
    disks.settle("a.qcow2", "0123", shop, "/store/.scratch")
    return helper.put_names


@pytest.mark.parametrize("check", [0, 3])
def test_a_disk_that_only_wastes_room_is_taken(tmp_path: Path, check: int) -> None:
    assert copied(tmp_path, check) == ["manifest.json"]


def test_a_damaged_disk_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"a\.qcow2: the disk is damaged or cut short; (?s:.)*what it found"):
        copied(tmp_path, 2)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ('"backing-filename": "/etc/shadow"', "it is an overlay of /etc/shadow"),
        ('"format-specific": {"data": {"data-file": "/etc/shadow"}}', "its data is in another file, /etc/shadow"),
        ('"children": [{"name": "extents.0"}]', "its data is in another file, parts of it"),
    ],
)
def test_a_disk_that_is_in_two_files_is_refused(tmp_path: Path, more: str, words: str) -> None:
    with pytest.raises(ImageError, match=rf"a\.qcow2: {words}; make it whole first, with qemu-img convert -O qcow2"):
        copied(tmp_path, 0, f", {more}")


def test_a_context_is_known_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contexts, "build_contexts", lambda: tmp_path)
    (tmp_path / "x").mkdir()
    script = tmp_path / "x" / "build"
    script.write_text("a")
    seen = {contexts.digest("x")}
    script.chmod(0o755)
    seen.add(contexts.digest("x"))
    script.write_text("b")
    seen.add(contexts.digest("x"))
    script.rename(tmp_path / "x" / "make")
    seen.add(contexts.digest("x"))
    assert len(seen) == 4
    before = contexts.archive("x")
    (tmp_path / "x" / "__pycache__").mkdir()
    (tmp_path / "x" / "__pycache__" / "m.pyc").write_text("")
    assert contexts.archive("x") == before
