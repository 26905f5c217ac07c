"""Templates: one VM of each shape is saved, and every other VM of that shape is a clone of it.

The saved VM is booted, or restored from the template of a simpler shape (`layering`).

A template is in the store under a key made of everything that shapes it. The runtime image saves and restores
(`images/runtime/virtainer/template.py`).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import yaml

from pytest_virtainers.config import parsing
from pytest_virtainers.config.network_spec import DEFAULT
from pytest_virtainers.config.prepare_digest import digest
from pytest_virtainers.errors import StoreError, Unclonable
from pytest_virtainers.launching import cloud_init, layering
from pytest_virtainers.launching.once import Once
from pytest_virtainers.ssh.keys import KeyPair, Keys
from pytest_virtainers.ssh.resumable import SERVE, Session
from pytest_virtainers.store import entries
from pytest_virtainers.store.places import is_place, path
from pytest_virtainers.support.paths import locked
from pytest_virtainers.vm import identity, provisioning, saving

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from pytest_virtainers.config.spec import Spec
    from pytest_virtainers.guests.images import GuestImage
    from pytest_virtainers.store.locks import SharedLocks
    from pytest_virtainers.store.volume import OpenStore
    from pytest_virtainers.support.progress import Progress
    from pytest_virtainers.vm.vm import VM

_FORMAT = 4
_NO_KEYS = Keys(KeyPair("", ""), KeyPair("", ""))
HOSTNAME = "vm"
"""Hostname of a template's guest: that of VMs of markers without a name, which need not be renamed."""


@dataclass(frozen=True)
class Template:
    """A saved VM in the store.

    Attributes:
        key: its name in the store.
        base: place of the guest image on which its disk is based.
        user: the login user.
        keys: login key and host key of its clones.
        session: the SSH session that each clone resumes, if there is one.
        refusal: why VMs of this shape cannot be cloned; empty: they can.
        origin: place of the template from which it was made; empty: it was booted.
    """

    key: str
    base: str
    user: str
    keys: Keys
    session: Session | None = None
    refusal: str = ""
    origin: str = ""

    @property
    def place(self) -> str:
        """Its folder in the store."""
        return _place(self.key)

    @property
    def identity(self) -> str:
        """A text that distinguishes it from a later template at the same place in the store."""
        return self.keys.host.public

    @property
    def folder(self) -> str:
        """Its folder in a container that has the store at `/store`."""
        return path(self.place)


class Maker(Protocol):
    """Starts the VM that becomes a template; its errors pass through `Templates.ensure`."""

    def boot(self, spec: Spec, keys: Keys, folder: str, /) -> VM:
        """Boot a VM with these keys that can be saved into a folder of the store."""

    def restore(self, spec: Spec, keys: Keys, folder: str, plain: Template, /) -> VM:
        """Restore one from a copy of its plain template; raise `NotLayered` if a boot may work."""


class Templates:
    """The templates of one run.

    Args:
        store: opens the store.
        holds: mark each template as in use by this process.
        runtime_id: returns the id of the runtime image, which saves and restores.
        progress: where long steps are shown.
        once: remembers what could not be made in this run.
    """

    def __init__(
        self,
        store: Callable[[], AbstractContextManager[OpenStore]],
        *,
        holds: SharedLocks,
        runtime_id: Callable[[], str],
        progress: Progress,
        once: Once | None = None,
    ) -> None:
        self._store = store
        self._holds = holds
        self._runtime_id = runtime_id
        self._progress = progress
        self._once = once or Once()
        self._known: dict[str, Template] = {}

    def ensure(self, spec: Spec, guest: GuestImage, maker: Maker) -> Template:
        """Return the template for `spec`; the first process that needs it makes it.

        Args:
            spec: spec of the VM that is to be cloned.
            guest: its guest image.
            maker: starts the VM that is saved.

        Raises:
            VirtainerError: as booting does.
            StoreError: the store cannot be written.
            TemplateError: it cannot be saved, or could not be made before in this run.
        """
        __tracebackhide__ = True
        key = self.key(spec, guest)
        if key not in self._known:
            with self._store() as store:
                return self._ensure(key, spec, guest, maker, store)
        return self._known[key]

    def _ensure(self, key: str, spec: Spec, guest: GuestImage, maker: Maker, store: OpenStore) -> Template:
        __tracebackhide__ = True
        self._once.check(key, spec.name)
        self._holds.add(_place(key))
        self._known[key] = _recall(key, store) or self._make_once(key, spec, guest, maker, store)
        return self._known[key]

    def find(self, spec: Spec, guest: GuestImage) -> Template | None:
        """Return the template for `spec` if there is one; raises `StoreError`."""
        key = self.key(spec, guest)
        if key not in self._known:
            self._holds.add(_place(key))
            with self._store() as store:
                found = _recall(key, store)
            if found is None:
                return None
            self._known[key] = found
        return self._known[key]

    def forget(self, template: Template, *, condemned: bool) -> bool:
        """Read the store again when this template is next requested; return whether it was removed there.

        Args:
            template: the template, which did not restore.
            condemned: remove it, unless another process has replaced it. Running clones keep what they have open.
        """
        self._known.pop(template.key, None)
        if not condemned:
            with self._store() as store:
                store.forget(template.place)
            return False
        with self._store() as store, self._lock(template.key):
            stored = _load(template.key, store)
            if stored is not None and stored.keys != template.keys:
                return False
            entries.remove(store, [template.place])
        return True

    def known(self, place: str) -> Template | None:
        """Return the template at this place of the store, if this process has used it."""
        return next((each for each in self._known.values() if each.place == place), None)

    def made_from(self, place: str) -> list[Template]:
        """Return the templates which this process has used that were made from the one at this place."""
        return [each for each in self._known.values() if each.origin == place]

    def _make_once(self, key: str, spec: Spec, guest: GuestImage, maker: Maker, store: OpenStore) -> Template:
        __tracebackhide__ = True
        with self._once.without_time_limit(), self._lock(key):
            found = _load(key, store)
            if found is not None:
                return found
            with self._once.making(key, spec.name):
                found = Template(key, guest.place, spec.user or guest.user, Keys.generate())
                plain = self._plain(spec, guest, maker, store)
                with store.new(found.place) as scratch:
                    vm = None
                    if plain is not None:
                        try:
                            vm = maker.restore(_alone(spec), found.keys, scratch, plain)
                            found = replace(found, origin=plain.place)
                        except layering.NotLayered as reason:
                            self._progress.note(f"a VM of {spec.image} is booted for its template: {reason}")
                            store.shell('rm -rf "$1"/*', scratch)
                    vm = vm or maker.boot(_alone(spec), found.keys, scratch)
                    try:
                        found = replace(found, session=saving.save(vm.machine, HOSTNAME))
                    except Unclonable as refusal:
                        found = replace(found, refusal=str(refusal))
                    finally:
                        vm.machine.close()
                    if found.refusal:
                        store.shell('rm -rf "$1"/*', scratch)
                    store.container.put(scratch, {"manifest.json": _manifest(found, spec, guest)})
        return found

    def _plain(self, spec: Spec, guest: GuestImage, maker: Maker, store: OpenStore) -> Template | None:
        """Return the template from which that of `spec` is made; `None`: it is booted."""
        __tracebackhide__ = True
        if not layering.is_layer(spec):
            return None
        shape = layering.plain(spec)
        key = self.key(shape, guest)
        plain = self._known.get(key) or self._ensure(key, shape, guest, maker, store)
        return None if plain.refusal else plain

    def _lock(self, key: str) -> AbstractContextManager[object]:
        with self._progress.step("waiting for another process, which makes this template") as step:
            return locked(f"template-{key}", step.update)

    def key(self, spec: Spec, guest: GuestImage) -> str:
        """Return a key of all that shapes a template; a VM's identity, timeouts and scope do not."""
        shape = replace(spec, name=HOSTNAME, hostname=None, files={})
        facts = {
            "format": _FORMAT,
            "runtime": self._runtime_id(),
            "disk": guest.digest,
            "machine": [shape.ram, shape.cpus, shape.disk, shape.accel, guest.arch, shape.internet],
            "firmware": guest.boots_with(shape.firmware),
            "env": shape.env,
            "user-data": yaml.safe_dump(
                cloud_init.user_data(shape, _NO_KEYS, spec.user or guest.user), sort_keys=False
            ),
            "meta-data": yaml.safe_dump(shape.meta_data, sort_keys=False),
            "network-config": cloud_init.NETWORK_CONFIG,
            "helper": [identity.helper(), identity.LEAVE, SERVE],
            "prepare": digest(shape.prepare) if shape.prepare else "",
            "provisioning": provisioning.SCRIPTS if layering.is_layer(spec) else [],
        }
        if spec.files:
            facts["files"] = [(path, hashlib.sha256(content).hexdigest()) for path, content in spec.files.items()]
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def disk_chain(place: str, store: OpenStore) -> list[str]:
    """Return the places with the disks below a VM that started from `place`, the lowest last; raises `StoreError`."""
    if not place.startswith("templates/"):
        return [place]
    manifest = store.manifest(place)
    if manifest is None or not is_place(manifest.get("guest")):
        raise StoreError(f"{place} was removed from the store, and the VM's disk is based on it")
    return [place, manifest["guest"]]


def _alone(spec: Spec) -> Spec:
    """Return the spec of the VM that becomes the template: it has no identity and no shared network."""
    return replace(spec, name=HOSTNAME, hostname=HOSTNAME, network=DEFAULT, ip=None, nics=())


def _place(key: str) -> str:
    return f"templates/{key}"


def _recall(key: str, store: OpenStore) -> Template | None:
    """Return a template as the last process saw it, or as it is."""
    return _parsed(key, store.recall(_place(key)))


def _load(key: str, store: OpenStore) -> Template | None:
    return _parsed(key, store.manifest(_place(key)))


def _parsed(key: str, manifest: Mapping[str, Any] | None) -> Template | None:
    if manifest is None:
        return None
    try:
        keys = Keys(**{name: KeyPair(**pair) for name, pair in manifest["keys"].items()})
        session = Session(**manifest["session"]) if manifest["session"] else None
        if not is_place(manifest["guest"]):
            return None
        user = parsing.user_name(manifest["user"])
        origin = manifest["origin"]
        if origin and not is_place(origin):
            return None
        return Template(key, manifest["guest"], user, keys, session, manifest["refusal"], origin)
    except (AttributeError, KeyError, TypeError, ValueError):  # damaged: it is made again, as if it were missing
        return None


def _manifest(template: Template, spec: Spec, guest: GuestImage) -> bytes:
    facts = {"image": spec.image, "guest": guest.place, "architecture": guest.arch}
    facts |= {name: getattr(spec, name) for name in ("ram", "cpus", "disk")}
    about = {"user": template.user, "refusal": template.refusal, "keys": asdict(template.keys)}
    about["origin"] = template.origin
    session = template.session and asdict(template.session)
    return json.dumps({**facts, **about, "session": session}, indent=2).encode()
