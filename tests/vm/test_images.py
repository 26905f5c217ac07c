"""Guest images from a server, into the store of a real engine."""

import hashlib
import io
import json
import lzma
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_virtainers import cli
from pytest_virtainers.config.settings import environment, resolve
from pytest_virtainers.engine.docker.engine import DockerEngine
from pytest_virtainers.errors import EngineError, ImageError
from pytest_virtainers.guests import container_disk, images, import_disk
from pytest_virtainers.launching.build import build_launcher
from pytest_virtainers.store.volume import OpenStore, open_store
from pytest_virtainers.support.progress import SILENT
from tests.unit.hostile_server import HostileServer, cut
from tests.unit.runtime import hostile_disks

DISK = (bytes(range(256)) * 2)[:-2] + b"\x55\xaa" + bytes(2**20 - 512)


@pytest.fixture
def store(
    engine: DockerEngine, runtime_image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[OpenStore]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "store").mkdir()
    with open_store(engine, str(tmp_path / "store"), runtime_image, "images") as found:
        yield found


def image(server: HostileServer) -> str:
    return f"{server.url}#sha256={hashlib.sha256(server.content).hexdigest()}"


@pytest.mark.each_engine
def test_a_compressed_disk_is_downloaded_once_into_the_store(server: HostileServer, store: OpenStore) -> None:
    server.content = lzma.compress(DISK)
    server.days = [cut(100)]
    guest = images.ensure(image(server), "auto", store, SILENT)
    assert guest.digest == hashlib.sha256(DISK).hexdigest()
    store.shell(f"qemu-img convert -f qcow2 -O raw {guest.disk} /store/raw")
    assert store.shell("sha256sum /store/raw").split()[0] == guest.digest
    assert len(server.ranges) == 2
    assert images.ensure(image(server), "auto", store, SILENT) == guest
    assert len(server.ranges) == 2


def test_images_verify_compares_the_disks_in_the_store(
    server: HostileServer,
    store: OpenStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("VIRTAINER_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    server.content = DISK
    (tmp_path / "virtainers").mkdir()
    (tmp_path / "virtainers" / "images.toml").write_text(
        f'[tiny]\nurl = "{server.url}"\nsha256 = "{hashlib.sha256(DISK).hexdigest()}"\n'
    )
    assert cli.main(["images", "verify", "tiny"]) == 1
    assert capsys.readouterr().out.endswith(": not in the store\n")
    assert cli.main(["images", "pull", "tiny"]) == 0
    capsys.readouterr()
    assert cli.main(["images", "verify", "--json", "tiny"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["sha256"] == row["was"]
    assert cli.main(["images", "verify"]) == 0
    assert capsys.readouterr().out == f"{row['place']}: unchanged\n"
    store.shell(f"printf x >>/store/{row['place']}/disk.qcow2")
    assert cli.main(["images", "verify"]) == 1
    assert f", expected {row['was']}\n" in capsys.readouterr().out
    store.shell(f"rm /store/{row['place']}/disk.qcow2")
    assert cli.main(["images", "verify"]) == 1
    assert capsys.readouterr().out == f"{row['place']}: missing, expected {row['was']}\n"
    assert cli.main(["images", "rm", "tiny"]) == 0
    capsys.readouterr()
    assert cli.main(["images", "rm", "tiny"]) == 1
    assert (
        capsys.readouterr().err
        == f"virtainers: {row['place']} is not in the store. List its entries: virtainers store ls\n"
    )


@pytest.mark.parametrize("kind", ["raw", "vmdk", "vhdx"])
def test_disks_of_all_formats_become_the_same_qcow2(store: OpenStore, tmp_path: Path, kind: str) -> None:
    raw, came = tmp_path / "store" / "raw", tmp_path / "store" / f"came.{kind}"
    raw.write_bytes(DISK + bytes(32 * 2**20))
    store.shell(f"cd /store && qemu-img convert -f raw -O {kind} raw {came.name}")
    packed = tmp_path / f"disk.{kind}.xz"
    packed.write_bytes(lzma.compress(came.read_bytes()))
    guest = images.ensure(str(packed), "auto", store, SILENT)
    assert guest.digest == hashlib.sha256(came.read_bytes()).hexdigest()
    assert "file format: qcow2" in store.shell(f"qemu-img info {guest.disk}")
    store.shell(f"qemu-img compare /store/raw {guest.disk}")
    assert int(store.shell(f"stat -c %s {guest.disk}")) < 8 * 2**20  # empty blocks use no space
    assert images.ensure(str(packed), "auto", store, SILENT) == guest


@pytest.mark.parametrize("subformat", ["monolithicSparse", "streamOptimized"])
def test_a_truncated_vmdk_is_refused(store: OpenStore, tmp_path: Path, subformat: str) -> None:
    (tmp_path / "store" / "raw").write_bytes(DISK + os.urandom(4 * 2**20))
    store.shell(f"cd /store && qemu-img convert -f raw -O vmdk -o subformat={subformat} raw whole.vmdk")
    cut_short = tmp_path / "a.vmdk"
    cut_short.write_bytes((tmp_path / "store" / "whole.vmdk").read_bytes()[: -2 * 2**20])
    with pytest.raises(ImageError, match=r"a\.vmdk: it is damaged or cut short: "):
        images.ensure(str(cut_short), "auto", store, SILENT)
    assert store.shell("find /store -mindepth 1 -type d").split() in ([], ["/store/guests"])


@pytest.fixture
def ran(store: OpenStore) -> Callable[[], list[str]]:
    """Return the user and the words of each `qemu-img` in the helper, so far."""
    spy = '#!/bin/sh\necho "$(id -u) $*" >>/tmp/ran\nexec /usr/bin/qemu-img.real "$@"\n'
    store.shell("mv /usr/bin/qemu-img /usr/bin/qemu-img.real && touch /tmp/ran && chmod 666 /tmp/ran")
    store.container.put("/usr/bin", {"qemu-img": spy.encode()})
    store.shell("chmod 755 /usr/bin/qemu-img")
    return lambda: store.shell("cat /tmp/ran && : >/tmp/ran").splitlines()


def test_hostile_disks_are_refused_before_qemu_opens_them(
    store: OpenStore, tmp_path: Path, ran: Callable[[], list[str]]
) -> None:
    """All of them by the helper's command; those known from reports about other products also from a file."""
    store.shell(f"mkfifo {hostile_disks.TRAP}")  # opening it would block
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for disk in hostile_disks.REFUSED:
            entry = tarfile.TarInfo(f"{disk.name}/disk.qcow2")
            entry.size = len(disk.content)
            tar.addfile(entry, io.BytesIO(disk.content))
    store.container.put_archive("/tmp", stream.getvalue())
    names = " ".join(disk.name for disk in hostile_disks.REFUSED)
    answers = store.shell(f"cd /tmp && for each in {names}; do import-disk $each; done").splitlines()
    for disk, answer in zip(hostile_disks.REFUSED, answers, strict=True):
        assert disk.words in json.loads(answer)["refused"], disk.name
    for disk in hostile_disks.REFUSED:
        if disk.name in {"data-file-by-json", "vmdk-of-capacity-0", "descriptor-and-boot-sector"}:
            (tmp_path / disk.name).write_bytes(disk.content)
            with pytest.raises(ImageError) as caught:
                images.ensure(str(tmp_path / disk.name), "auto", store, SILENT)
            assert str(caught.value).startswith(f"image {tmp_path / disk.name}: it ")
            assert disk.words in str(caught.value)
    assert ran() == []
    assert store.shell("find /store -type f").split() == []


@pytest.mark.each_engine
def test_honest_disks_are_converted_with_the_found_format_by_an_unprivileged_user(
    store: OpenStore, tmp_path: Path, ran: Callable[[], list[str]]
) -> None:
    user = store.shell("id -u qemu").strip()
    for disk in hostile_disks.TAKEN:
        if disk.name not in {"plain", "stream", "gpt"}:
            continue
        (tmp_path / disk.name).write_bytes(disk.content)
        guest = images.ensure(str(tmp_path / disk.name), "auto", store, SILENT)
        about = (store.manifest(guest.place) or {})["disk"]
        came_as = {"plain": "qcow2", "stream": "vmdk", "gpt": "raw"}[disk.name]
        used = ran()
        assert [each.split()[:2] for each in used] == [
            *([] if came_as == "raw" else [[user, "check"]]),
            *([] if came_as == "qcow2" else [[user, "convert"]]),
        ]
        assert all(f" -f {came_as} " in each for each in used)
        assert (about["came_as"], about["sha256"]) == (came_as, hashlib.sha256(disk.content).hexdigest())
        assert store.shell(f"sha256sum {guest.disk}").split()[0] == about["stored_sha256"]
        assert store.shell(f"stat -c %A /store/{guest.place}/*").split() == ["-r--r--r--", "-r--------"]


def test_a_disk_that_keeps_qemu_img_busy_is_refused_in_time(store: OpenStore, tmp_path: Path) -> None:
    """Two megabytes with 20 000 snapshots: `qemu-img check` would take a day."""
    (tmp_path / "busy").write_bytes(hostile_disks.snapshots(20_000, 65_536))
    with SILENT.step("copying") as step, store.scratch() as out:
        import_disk.send(tmp_path / "busy", "busy", store, out, step)
        began = time.monotonic()
        code, output = store.container.run(["import-disk", out, "2"])
        assert time.monotonic() - began < 60
        assert "qemu-img" not in store.shell("cat /proc/[0-9]*/comm 2>/dev/null || true")
    assert code == 0
    assert json.loads(output) == {
        "refused": "takes more work than an honest disk of its size: qemu-img check was still at work after 2 s"
    }


def test_a_disk_that_becomes_much_larger_is_refused(store: OpenStore) -> None:
    """A compressed VMDK may have the same data everywhere, without holes."""
    store.shell(
        "cd /store && python3 -c \"import os; open('raw', 'wb').write(os.urandom(65536) * 512)\" && "
        "qemu-img convert -f raw -O vmdk -o subformat=streamOptimized raw disk.qcow2"
    )
    smaller = "from virtainer import import_disk as each; each._METADATA_BYTES = 2**23; each._MOST_GROWTH = 0"
    code, output = store.container.run(["python3", "-S", "-c", f"{smaller}; each.main(['/store'])"])
    assert code == 0
    assert json.loads(output)["refused"].endswith("qemu-img convert wrote more than 8 MiB")


LAYOUTS: dict[str, tuple[dict[str, bytes | str | None], str]] = {
    # name: the content of the image (text: a link to that; None: a folder), and the error (empty: its disk is found)
    "a file in /disk": ({"disk/any name.img": DISK}, ""),
    "the file /image": ({"image": DISK}, ""),
    "/image before /disk": ({"image": DISK, "disk/other": b"no disk"}, ""),
    "a deep folder": ({"disk/a/b/c": DISK}, ""),
    "a name like an option": ({"disk/-rf": DISK}, ""),
    "a name with a line end": ({"disk/a\nb": DISK}, ""),
    "a name that virtainers uses": ({"disk/disk.qcow2": DISK}, ""),
    "another name that virtainers uses": ({"disk/.found/.found": DISK}, ""),
    "a link next to it": ({"disk/a": DISK, "disk/b": "/etc/shadow"}, ""),
    "/disk is the file": ({"disk": DISK}, ""),
    "two files": ({"disk/a": DISK, "disk/b": DISK}, "it has 2 files at /image or /disk"),
    "nothing in /disk": ({"disk": None}, "it has no disk at /image or /disk"),
    "/image is a link": ({"image": "/etc/shadow"}, "it has no disk at"),
    # Docker refuses to copy it, Podman finds nothing there.
    "/image is a link out of the image": ({"image": "../../../../../etc/shadow"}, "image"),
    # Podman follows it within the image, where /etc has one file.
    "/disk is a link": ({"disk": "/etc"}, "it "),
    "a link in /disk": ({"disk/a": "/etc/shadow"}, "it has no disk at"),
    "no disk": ({"disk/a": b"text" * 500}, "it is neither a qcow2"),
    "an overlay": ({"disk/a": hostile_disks.qcow2(backing=b"/etc/shadow")}, "it is an overlay of /etc/shadow"),
}


def packed(content: dict[str, bytes | str | None]) -> bytes:
    """Return a file system as tar, with unusual owners and modes."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, each in {"etc/passwd": b"", **content}.items():
            entry = tarfile.TarInfo(name)
            entry.mode, entry.uid = 0o6755, 107
            if isinstance(each, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, each
            elif each is None:
                entry.type = tarfile.DIRTYPE
            else:
                entry.size = len(each)
            tar.addfile(entry, io.BytesIO(each) if isinstance(each, bytes) else None)
    return stream.getvalue()


@pytest.mark.each_engine
def test_disks_are_found_in_all_layouts_of_container_images(engine: DockerEngine, store: OpenStore) -> None:
    for number, (layout, (content, words)) in enumerate(LAYOUTS.items()):
        reference = f"localhost/virtainers-test:layout-{number}"
        engine.api.import_image_from_data(packed(content), repository=reference)
        try:
            if words:
                with pytest.raises((ImageError, EngineError)) as caught:
                    images.ensure(f"docker-image://{reference}", "auto", store, SILENT)
                assert words in str(caught.value), layout
                continue
            guest = images.ensure(f"docker-image://{reference}", "auto", store, SILENT)
            assert (guest.digest, guest.user) == (hashlib.sha256(DISK).hexdigest(), "tester"), layout
            found = store.shell(f"cd /store/{guest.place} && find . -mindepth 1 -printf '%P %m %u;'")
            assert sorted(found.strip(";").split(";")) == ["disk.qcow2 444 root", "manifest.json 400 root"], layout
            store.shell(f"rm -rf /store/{guest.place}")  # to the engine, the next one may be the same image
        finally:
            engine.api.remove_image(reference)
    assert store.shell("find /store -type f").split() == []


@pytest.mark.each_engine
def test_a_container_image_without_a_disk_is_refused(store: OpenStore, runtime_image: str) -> None:
    with pytest.raises(ImageError, match=r"it has no disk at /image or /disk\. An image of virtainers images"):
        images.ensure(f"docker-image://{runtime_image}", "auto", store, SILENT)
    assert store.shell("find /store -type f").split() == []
    with pytest.raises(ImageError, match=r"has no such image, and pulling it failed: .+"):
        images.ensure("docker-image://localhost/virtainers-test:none", "auto", store, SILENT)


def test_files_that_are_not_disks_leave_nothing(server: HostileServer, store: OpenStore, tmp_path: Path) -> None:
    server.content = b"<html>Please log in</html>" * 1000
    with pytest.raises(
        ImageError,
        match=f"image {server.url}: this is neither a qcow2, VMDK or VHDX image nor a raw disk",
    ):
        images.ensure(image(server), "auto", store, SILENT)
    server.content = hostile_disks.qcow2()[:70_000]
    with pytest.raises(ImageError, match=f"image {server.url}: it is damaged or cut short: qemu-img check failed"):
        images.ensure(image(server), "auto", store, SILENT)
    assert list((tmp_path / "cache" / "pytest-virtainers" / "downloads").iterdir()) == []
    assert store.shell("find /store -type f").split() == []


@pytest.mark.each_engine
def test_a_baked_image_is_started_by_the_engine_itself(engine: DockerEngine, tmp_path: Path) -> None:
    """It has the unchanged disk of the guest, runs without the plugin, and can be used as a guest image."""
    tag = "localhost/virtainers-test/debian:13"
    baked = subprocess.run(
        [sys.executable, "-m", "pytest_virtainers.cli", "images", "bake", "debian-13", "--tag", tag],
        env={**os.environ, "VIRTAINER_ENGINE": engine.kind},
        text=True,
        stdout=subprocess.PIPE,
        check=True,
    )
    assert baked.stdout == f"{tag}\n"
    rights = [f"--cap-add={each}" for each in ("NET_ADMIN", "NET_BIND_SERVICE", "NET_RAW", "SETGID", "SETUID")]
    begin = [*engine.command_line(), "run", "-d", "--rm", "--cap-drop=ALL", *rights, "--device=/dev/net/tun"]
    begin += ["--ulimit=nofile=1024:1024", "--ulimit=nproc=4096:4096"]  # Podman's own are too many for some hosts
    name = f"virtainers-test-baked-{os.getpid()}"
    try:
        subprocess.run([*begin, "--sysctl=net.ipv4.ip_forward=1", f"--name={name}", tag], check=True)
        try:
            seen = b""
            for _, piece in engine.adopt(name).logs(follow=True):
                seen += piece
                if b"Linux version" in seen:
                    break
            assert b"Linux version" in seen, seen[-2000:]
        finally:
            subprocess.run([*engine.command_line(), "rm", "-f", name], check=True)
        with build_launcher(resolve([environment(os.environ)]), SILENT) as launcher:
            original = launcher.guests.get("debian-13")
            assert container_disk.find(engine, tag, "auto", print).user == original.user
            with (
                launcher.store.open() as store,
                pytest.raises((ImageError, EngineError), match=rf"^building image {tag} (on .+ )?failed"),
            ):  # though there is one of that name
                container_disk.bake(original, tag, "localhost/virtainers-test/none", store, print)
            assert launcher.guests.get(f"docker-image://{tag}").digest == original.digest
    finally:
        engine.api.remove_image(tag)
