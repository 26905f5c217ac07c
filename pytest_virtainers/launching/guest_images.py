"""The guest images of a run: each is brought into the store once, and not again if that failed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_virtainers.config.architecture import check_firmware
from pytest_virtainers.errors import ImageError, SpecError
from pytest_virtainers.guests import images
from pytest_virtainers.guests.catalogue import catalogue

if TYPE_CHECKING:
    from pytest_virtainers.config.spec import Spec
    from pytest_virtainers.guests.images import GuestImage
    from pytest_virtainers.launching.once import Once
    from pytest_virtainers.launching.run_store import RunStore
    from pytest_virtainers.store.locks import SharedLocks
    from pytest_virtainers.support.progress import Progress


class GuestImages:
    """A cache of the guest images that the VMs of one run start from.

    Args:
        store: where they are.
        locks: mark each as in use by this process.
        once: suspends the time limit of the test that downloads or builds one.
        progress: where that is shown.
        engine_arch: architecture of the engine's host.
    """

    def __init__(
        self, store: RunStore, *, locks: SharedLocks, once: Once, progress: Progress, engine_arch: str
    ) -> None:
        self._store, self._locks, self._once, self._progress = store, locks, once, progress
        self._engine_arch = engine_arch
        self._found: dict[tuple[str, str], GuestImage] = {}  # by image and architecture, as requested
        self._refused: dict[tuple[str, str], str] = {}  # those that cannot be used, and why

    def of(self, spec: Spec) -> GuestImage:
        """Return the guest image of a VM.

        Raises:
            SpecError: no host could run such a VM; nothing was downloaded or built for it.
            ImageError, StoreError: as `get` does.
        """
        arch = images.architecture(spec.image, spec.arch)
        try:
            check_firmware(arch, spec.firmware)
        except ValueError as error:
            raise SpecError(f"{spec.name} ({spec.image}): {error}") from None
        if spec.accel == "kvm" and arch not in {"auto", self._engine_arch}:
            raise SpecError(
                f"{spec.name}: accel='kvm' runs guests of the host's own architecture, {self._engine_arch}; "
                f"{spec.image} is for {arch}, and emulated with accel='auto'"
            )
        return self.get(spec.image, spec.arch)

    def get(self, image: str, arch: str = "auto") -> GuestImage:
        """Return a guest image for VMs of `arch`; download or build it if the store lacks it.

        Raises:
            ImageError: it cannot be used; further calls raise the same without another try.
            StoreError: the store cannot be used.
        """
        key = image, arch
        if key not in self._found:
            if key in self._refused:
                raise ImageError(self._refused[key])
            images.find(image, arch)  # a wrong name should not have to wait for a container
            with self._once.without_time_limit(), self._store.open() as store:
                try:
                    guest = images.ensure(image, arch, store, self._progress)
                except ImageError as error:
                    self._refused[key] = str(error)
                    raise
                self._locks.add(guest.place)
            self._found[key] = guest
        return self._found[key]

    def known(self, spec: Spec) -> GuestImage | None:
        """Return the guest image of a VM if this run has used it; the store is not read."""
        return self._found.get((spec.image, spec.arch))

    def is_stored(self, guest: GuestImage) -> bool:
        """Return whether the store still has this guest image; if not, forget it."""
        with self._store.open() as store:
            manifest = store.manifest(guest.place)
        if manifest is not None and (manifest.get("disk") or {}).get("sha256") == guest.digest:
            return True
        self._found = {key: each for key, each in self._found.items() if each.place != guest.place}
        return False

    def refuse(self, place: str, why: str) -> bool:
        """Raise `ImageError` for what is at a place of the store from now on; return whether this run has used it."""
        keys = [key for key, guest in self._found.items() if guest.place == place]
        for key in keys:
            self._refused[key] = why
            del self._found[key]
        return bool(keys)

    def reset(self) -> None:
        """Forget failures, and images that are not in the catalogue: the file behind a path may change."""
        self._found = {key: guest for key, guest in self._found.items() if key[0] in catalogue()}
        self._refused = {}
