import contextlib
import gzip
import lzma
import zlib
from pathlib import Path
from typing import Any

import pytest
import zstandard

from pytest_virtainers.engine import build_context
from pytest_virtainers.engine.facts import Image
from pytest_virtainers.errors import ImageError, SpecError
from pytest_virtainers.guests import catalogue, container_disk, decompress, images
from pytest_virtainers.store.volume import OpenStore
from pytest_virtainers.support.progress import Progress
from tests.unit.memory_engine import MemoryContainer, MemoryEngine


def refused(image: str) -> str:
    with pytest.raises(ImageError) as caught:
        images.find(image)
    return str(caught.value)


def test_find_returns_the_entry_of_a_name_or_alias() -> None:
    entry = images.find("debian-13")
    assert isinstance(entry, catalogue.Recipe)
    assert images.find("debian") is entry
    assert entry.key == f"debian-13-{build_context.digest('debian')}"


def test_find_returns_the_entry_of_the_requested_architecture() -> None:
    entry = images.find("debian", "arm64")
    assert entry is images.find("debian-13-arm64")
    assert isinstance(entry, catalogue.Recipe)
    assert (entry.arch, images.find("debian", "amd64")) == ("arm64", images.find("debian"))
    for image, arch, message in (
        (
            "arch",
            "arm64",
            "guest image arch is for amd64, not for arch='arm64'. List the images of each architecture: virtainers ",
        ),
        (
            "debian-13-arm64",
            "amd64",
            "guest image debian-13-arm64 is for arm64, not for arch='amd64'. List the images of",
        ),
    ):
        with pytest.raises(ImageError) as caught:
            images.find(image, arch)
        assert str(caught.value).startswith(message)
    url = images.find("https://example.org/x.qcow2", "arm64")
    assert isinstance(url, catalogue.Published)
    assert url.arch == "arm64"


def test_firmware_defaults_to_that_of_the_architecture() -> None:
    amd64, arm64 = (images.GuestImage("x", "u", "d", arch=arch) for arch in ("amd64", "arm64"))
    assert amd64.variables("auto") == {"ARCH": "amd64", "FIRMWARE": "bios"}
    assert amd64.variables("uefi") == {"ARCH": "amd64", "FIRMWARE": "uefi"}
    assert arm64.variables("auto") == {"ARCH": "arm64", "FIRMWARE": "uefi"}


def test_find_suggests_a_similar_name() -> None:
    assert refused("debian13") == (
        "there is no guest image 'debian13'; did you mean 'debian-13'? "
        "the catalogue has almalinux-10, almalinux-8, " + refused("debian13").partition("almalinux-8, ")[2]
    )
    assert refused("debian13").endswith("ubuntu-26.04. A path, a URL and docker-image://NAME are allowed, too")
    assert "did you mean" not in refused("zzz")


def test_find_accepts_urls() -> None:
    entry = images.find("https://example.org/a%20b/x y.qcow2?z#sha256=" + "0" * 64)
    assert isinstance(entry, catalogue.Published)
    assert (entry.name, entry.user) == ("x-y.qcow2-z", "tester")
    assert entry.key.startswith("x-y.qcow2-z-")
    assert "http does not protect the download" in refused("http://example.org/x.qcow2")


def test_find_refuses_files_that_are_not_disks(tmp_path: Path) -> None:
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


def test_find_accepts_disk_formats_by_their_first_bytes(tmp_path: Path) -> None:
    for name, content in (
        ("a.qcow2", b"QFI\xfb" + b"\0" * 100),
        ("b.raw", b"\0" * 510 + b"\x55\xaa" + b"\0" * 512),
        ("c.vmdk", b"KDMV" + b"\0" * 100),
        ("d.vhdx", b"vhdxfile" + b"\0" * 100),
        ("e.qcow2.gz", gzip.compress(b"QFI\xfb")),
    ):
        (tmp_path / name).write_bytes(content)
        assert images.find(str(tmp_path / name)) == tmp_path / name


def test_decompression_stops_at_the_limit(tmp_path: Path) -> None:
    (tmp_path / "bomb.xz").write_bytes(lzma.compress(bytes(2**24)))
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(bytes(2**24)))
    (tmp_path / "bomb.zst").write_bytes(zstandard.compress(bytes(2**24)))
    for name, kind in (("bomb.xz", "xz"), ("bomb.gz", "gzip"), ("bomb.zst", "zstd")):
        with pytest.raises(decompress.Damaged, match=f"its {kind} data exceeds 0.00097.* GiB when decompressed"):
            decompress.decompress(tmp_path / name, tmp_path / "disk", str, limit=2**20)
        assert (tmp_path / "disk").stat().st_size <= 2**20


def test_xz_that_requires_gigabytes_of_memory_is_refused(tmp_path: Path) -> None:
    """One kilobyte can require a dictionary of 1.5 GiB."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 3 * 2**20}]
    compressed = bytearray(lzma.compress(b"x" * 100, filters=filters))
    properties = compressed.index(b"\x21\x01", 12) + 2  # of LZMA2, in the block header
    compressed[properties] = 39
    end = 12 + (compressed[12] + 1) * 4 - 4
    compressed[end : end + 4] = zlib.crc32(compressed[12:end]).to_bytes(4, "little")
    (tmp_path / "bomb.xz").write_bytes(compressed)
    with pytest.raises(decompress.Damaged, match="Memory usage limit exceeded"):
        decompress.decompress(tmp_path / "bomb.xz", tmp_path / "disk", str)


def find(engine: MemoryEngine, reference: str, arch: str = "auto") -> container_disk.Prepared:
    return container_disk.find(engine, reference, arch, print)


def refusal(engine: MemoryEngine, reference: str, arch: str = "auto") -> str:
    with pytest.raises(ImageError) as caught:
        find(engine, reference, arch)
    return str(caught.value)


def container_image(of: str = "amd64", **labels: str) -> Image:
    return Image(f"sha256:{of}", of, {f"virtainers.{name}": value for name, value in labels.items()})


def test_labels_of_a_container_image_describe_its_guest() -> None:
    engine = MemoryEngine(
        images={
            "plain": container_image(),
            "disk": container_image("arm64"),
            "ours": container_image(user="debian", arch="arm64", firmware="uefi"),
        }
    )
    assert find(engine, "plain") == container_disk.Prepared("plain", "sha256:amd64", None, "", "amd64")
    assert find(engine, "disk", "arm64") == container_disk.Prepared("disk", "sha256:arm64", None, "", "arm64")
    assert find(engine, "ours") == container_disk.Prepared("ours", "sha256:amd64", "debian", "uefi", "arm64")


@pytest.mark.parametrize("user", ["x\n  ProxyCommand touch /tmp/x", "-oProxyCommand=touch", ""])
def test_a_container_image_with_an_invalid_user_is_refused(user: str) -> None:
    message = refusal(MemoryEngine(images={"evil": container_image(user=user)}), "evil")
    assert message.startswith(
        f"image docker-image://evil: its label virtainers.user={user!r} is not valid: a login name"
    )


def test_a_container_image_that_cannot_boot_is_refused() -> None:
    odd, other = container_image(arch="arm64", firmware="bios"), container_image("s390x")
    engine = MemoryEngine(images={"odd": odd, "other": other})
    assert refusal(engine, "odd") == (
        "image docker-image://odd is for arm64: arm64 machines boot from uefi, not from bios"
    )
    assert refusal(engine, "other").startswith("image docker-image://other is for s390x: ")
    assert refusal(engine, "") == "image docker-image://: the name of the container image is missing"


def test_an_image_of_another_architecture_is_pulled_only_where_none_is_replaced() -> None:
    engine = MemoryEngine(images={"here": container_image()})
    engine.registry = {"arm64": container_image("arm64")}
    assert refusal(engine, "here", "arm64") == (
        "image docker-image://here: its guest is for amd64, not for arm64. If there is one for arm64, pull it: "
        "docker pull --platform linux/arm64 here"
    )
    assert engine.images["here"].arch == "amd64", "the user's image was not replaced"
    engine.registry = {"amd64": container_image()}
    assert "its guest is for amd64, not for arm64" in refusal(engine, "there", "arm64")
    del engine.images["there"]
    engine.registry["arm64"] = container_image("arm64")
    assert find(engine, "there", "arm64").arch == "arm64"
    del engine.images["there"]
    assert find(engine, "there").arch == "amd64"
    engine.registry = {}
    assert refusal(engine, "nowhere").startswith(
        "image docker-image://nowhere: docker 1 at unix:///nowhere has no such image, and pulling it failed: "
        "no such manifest. If the"
    )


def test_architecture_is_known_before_the_disk_is_built(tmp_path: Path) -> None:
    disk = tmp_path / "a.qcow2"
    disk.write_bytes(b"QFI\xfb" + bytes(100))
    for image, arch, known in (
        ("debian-13-arm64", "auto", "arm64"),
        ("debian", "arm64", "arm64"),
        ("debian", "auto", "amd64"),
        (str(disk), "auto", "amd64"),
        (str(disk), "arm64", "arm64"),
        ("docker-image://x", "auto", "auto"),
        ("docker-image://x", "arm64", "arm64"),
    ):
        assert images.architecture(image, arch) == known


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("debian-13", ["trixie", "amd64", "/store/out"]),
        ("debian-13-arm64", ["trixie", "arm64", "/store/out"]),
        ("debian-13-desktop", ["trixie", "amd64", "/store/out", "desktop"]),
    ],
)
def test_a_recipe_gets_suite_architecture_and_flavour(name: str, arguments: list[str]) -> None:
    container = MemoryContainer(answer=lambda _command: (1, b"step: install\nerror: no Debian mirror reached"))
    store: Any = OpenStore(MemoryEngine(), container, "a-store")
    store.manifest = lambda _place: None
    store.new = lambda _place: contextlib.nullcontext("/store/out")
    with pytest.raises(ImageError, match=f"building guest image {name} failed"):
        images.ensure(name, "auto", store, Progress(lambda _text: None, live=False))
    assert container.commands == [["/recipe/build", *arguments]]
    assert list(container.unpacked) == ["/"]


def test_find_returns_the_name_of_a_container_image() -> None:
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
def test_a_baked_image_is_named_after_its_guest(name: str, tag: str) -> None:
    assert container_disk.tag_for(name, None) == tag


@pytest.mark.parametrize(
    ("given", "tag"),
    [
        ("ours", "ours:latest"),
        ("host:5000/a/b", "host:5000/a/b:latest"),
        ("host:5000/a__b:V1.0", "host:5000/a__b:V1.0"),
    ],
)
def test_a_baked_image_gets_the_requested_name(given: str, tag: str) -> None:
    assert container_disk.tag_for("./my-disk.qcow2", given) == tag


def test_an_invalid_name_of_a_baked_image_is_refused() -> None:
    for wrong in ("", "Ours", "a/./b", "a:b/c", "a@sha256:00", "-a", "a:-b"):
        with pytest.raises(SpecError, match="is not a valid name of a container image"):
            container_disk.tag_for("debian-13", wrong)
    with pytest.raises(
        SpecError, match=r"my-disk.qcow2 is not in the catalogue: name the container image with --tag"
    ):
        container_disk.tag_for("./my-disk.qcow2", None)


def test_the_digest_of_a_context_follows_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_context, "build_contexts", lambda: tmp_path)
    (tmp_path / "x").mkdir()
    script = tmp_path / "x" / "build"
    script.write_text("a")
    seen = {build_context.digest("x")}
    script.chmod(0o755)
    seen.add(build_context.digest("x"))
    script.write_text("b")
    seen.add(build_context.digest("x"))
    script.rename(tmp_path / "x" / "make")
    seen.add(build_context.digest("x"))
    assert len(seen) == 4
    before = build_context.archive("x")
    (tmp_path / "x" / "__pycache__").mkdir()
    (tmp_path / "x" / "__pycache__" / "m.pyc").write_text("")
    assert build_context.archive("x") == before
