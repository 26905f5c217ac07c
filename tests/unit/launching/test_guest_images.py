"""The guest images of a run: which VMs can use one, and which failures are not retried."""

from dataclasses import replace
from typing import Any

import pytest

from pytest_virtainers.config.spec import merge
from pytest_virtainers.errors import ImageError, SpecError, StoreError
from pytest_virtainers.guests import images
from pytest_virtainers.guests.images import GuestImage
from pytest_virtainers.launching.damage import Damage
from pytest_virtainers.launching.guest_images import GuestImages
from pytest_virtainers.launching.integrity import Checked
from pytest_virtainers.launching.once import Once
from pytest_virtainers.store.locks import SharedLocks
from pytest_virtainers.support.progress import SILENT
from tests.unit.launching.world import BASE, BOOT, GUEST, World


class FakeOpenStore:
    """A store with this guest image."""

    def __init__(self, guest: GuestImage) -> None:
        self.guest = guest

    def manifest(self, place: str) -> dict[str, Any] | None:
        return {"disk": {"sha256": self.guest.digest}} if place == self.guest.place else None


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Return the images that are put into the store, by name and architecture; Fedora and Arch are missing."""
    tried: list[tuple[str, str]] = []

    def ensure(image: str, arch: str, *_: object) -> GuestImage:
        tried.append((image, arch))
        if image in {"fedora", "arch"}:
            raise ImageError(f"no {image}")
        return GUEST

    monkeypatch.setattr(images, "ensure", ensure)
    return tried


@pytest.fixture
def guests(world: World) -> GuestImages:
    return GuestImages(world.store, locks=SharedLocks(), once=Once(), progress=SILENT, engine_arch="amd64")


def test_an_image_that_cannot_be_used_is_not_tried_again(guests: GuestImages, tried: list[tuple[str, str]]) -> None:
    for image in ("fedora", "fedora", "arch"):
        with pytest.raises(ImageError, match=f"^no {image}$"):
            guests.get(image)
    assert tried == [("fedora", "auto"), ("arch", "auto")]


def test_an_image_is_brought_into_the_store_once(guests: GuestImages, tried: list[tuple[str, str]]) -> None:
    assert guests.known(BOOT) is None
    assert guests.of(BOOT) is guests.get("debian-13") is guests.known(BOOT) is GUEST
    assert len(tried) == 1


def test_reset_forgets_failures_and_images_outside_the_catalogue(
    guests: GuestImages, tried: list[tuple[str, str]]
) -> None:
    disk = "docker-image://x"
    for image in ("debian-13", disk):
        guests.get(image)
    with pytest.raises(ImageError):
        guests.get("arch")
    guests.reset()
    for image in ("debian-13", disk):
        guests.get(image)
    with pytest.raises(ImageError):
        guests.get("arch")
    assert [image for image, _ in tried] == ["debian-13", disk, "arch", disk, "arch"]


@pytest.mark.usefixtures("tried")
def test_an_image_that_was_removed_or_replaced_is_forgotten(guests: GuestImages, world: World) -> None:
    guests.get("debian-13")
    world.store.opened = FakeOpenStore(GUEST)
    assert guests.is_stored(GUEST)
    assert guests.known(BOOT) is GUEST
    world.store.opened = FakeOpenStore(replace(GUEST, digest="another"))
    assert not guests.is_stored(GUEST)
    assert guests.known(BOOT) is None


@pytest.mark.usefixtures("tried")
def test_a_damaged_guest_image_is_refused(guests: GuestImages, world: World) -> None:
    guests.get("debian-13")
    world.watch.found = [Checked(GUEST.place, "disk.qcow2", "bb", "aa")]
    damage = Damage(world.watch, guests, world.templates, lambda _template: False)
    (message,) = damage.look()
    assert message.endswith("To make or download it again: virtainers store verify --remove")
    for _ in range(2):
        with pytest.raises(ImageError, match=r"disk\.qcow2 is damaged: .* store verify --remove$"):
            guests.of(BOOT)


def test_a_damaged_guest_image_fails_the_next_launch(world: World) -> None:
    world.watch.found = [Checked("guests/other", "disk.qcow2", "bb", "aa")]
    with pytest.raises(StoreError, match=r"disk\.qcow2 is damaged: "):
        world.launch(BOOT)


def test_an_impossible_vm_is_refused_before_its_image_is_built(
    guests: GuestImages, tried: list[tuple[str, str]]
) -> None:
    refused: tuple[tuple[dict[str, Any], str], ...] = (
        (
            {"image": "debian-13-arm64", "firmware": "bios"},
            r"vm \(debian-13-arm64\): arm64 machines boot from uefi, not from bios",
        ),
        (
            {"arch": "arm64", "accel": "kvm"},
            "vm: accel='kvm' runs guests of the host's own architecture, amd64; debian-13 is for arm64, and emulated",
        ),
    )
    spec = merge(BASE)
    for wanted, message in refused:
        with pytest.raises(SpecError, match=message):
            guests.of(replace(spec, **wanted))
    assert tried == []
    for allowed in (
        spec,
        replace(spec, accel="kvm"),
        replace(spec, arch="arm64"),
        replace(spec, image="docker-image://x"),
    ):
        guests.of(allowed)
        assert tried[-1] == (allowed.image, allowed.arch)
