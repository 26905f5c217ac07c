"""The store on the engine's side: a volume or directory with guest images and templates, worked on in helpers.

Layout: `guests/KEY` and `templates/KEY`, folders with a `manifest.json` each. What is under way is in `.scratch-*`
and gets its name only when it is whole, so what is half-made is never seen.
"""

from __future__ import annotations

import json
import re
import secrets
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import docker.errors

from pytest_virtainers.engine.docker.container import Bind, Container, Plan
from pytest_virtainers.errors import EngineError, StoreError
from pytest_virtainers.store.manifests import Manifests

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping
    from contextlib import AbstractContextManager

    from pytest_virtainers.engine.docker.engine import Engine

MOUNT = "/store"
_ABANDONED_MINUTES = 120
# Engines mount what is deeper later; the second is a link to the first (images/runtime/Dockerfile).
_KEPT, _OVER_KEPT = "/kept", "/usr/lib/virtainer/kept"
_KEY = "[A-Za-z0-9][A-Za-z0-9._-]{0,199}"
_PLACE = re.compile(f"(guests|templates)/{_KEY}")
_NO_SPACE = "no space left on device"
_READ_ONLY = "read-only file system"

# What Docker itself gives by default and package installation needs; no mounts, no devices, no network set-up.
BUILD_CAPABILITIES = (
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
)


_READ_MANIFEST = """
cd "$1" && {
    touch -c manifest.json 2>/dev/null  # a store that is read-only but full of what is needed works, too
    cat manifest.json
}
"""
_GIVE_PLACE = """
mkdir -p "$3" && find "$1" -type f -exec chmod a-w {} + && sync "$1"/* && rm -rf "$2" && mv -T "$1" "$2"
"""
_MAKE_SCRATCH = f"""
for each in "${{1%/*}}"/.scratch-*; do
    [ ! -e "$each" ] || find "$each" -mmin -{_ABANDONED_MINUTES} -print -quit | grep -q . || rm -rf "$each"
done
rmdir "${{1%/*}}"/guests/* "${{1%/*}}"/templates/* 2>/dev/null  # Podman makes a directory that it is to mount
mkdir -m 700 "$1"
"""
# What fills the folder may still run: end all but PID 1 and this shell.
_DROP_SCRATCH = '[ ! -e "$1" ] || { kill -9 -1; rm -rf "$1"; }'


def key(value: object) -> str:
    """Parse the name of a guest image or template in the store."""
    if not isinstance(value, str) or not re.fullmatch(_KEY, value):
        raise ValueError("a name of letters, digits, ., _ and - is expected, starting with a letter or digit")
    return value


def is_place(value: object) -> bool:
    """Return whether this is a place in the store: `guests/KEY` or `templates/KEY`."""
    return isinstance(value, str) and _PLACE.fullmatch(value) is not None


def path(place: str) -> str:
    """Return the path of a place in a container that has it; raise `StoreError` when it is none."""
    if not is_place(place):
        raise StoreError(f"{place!r} is no place in the store: those are guests/KEY and templates/KEY")
    return f"{MOUNT}/{place}"


class Access:
    """How the containers of one run get at single places of the store, and at nothing else of it.

    Args:
        engine: that has the store.
        location: the store's volume name or absolute directory.
        open_store: opens it.
    """

    def __init__(
        self, engine: Engine, location: str, open_store: Callable[[], AbstractContextManager[Workshop]]
    ) -> None:
        self._engine, self._location, self._open = engine, location, open_store
        self._root: str | None = None
        self._whole = False

    def binds(
        self, places: Collection[str], *, scratch: str | None = None, lasting: bool = False
    ) -> tuple[Bind, ...]:
        """Return what a container gets of the store.

        Of a volume whose files are no directory of the engine's host, it gets the whole, as engines before Docker 26
        cannot give it less.

        Args:
            places: that it reads.
            scratch: the path of a scratch folder that it fills.
            lasting: it outlives this process. Then the engine knows that its volume is in use, and does not remove it
                with all volumes that no container has.

        Raises:
            StoreError: a place is none.
            EngineError: the engine failed.
        """
        paths = [path(each) for each in places]
        root = "" if self._whole else self._find_root()
        if not root:
            return (Bind(MOUNT, self._location, writable=scratch is not None),)
        reads = (Bind(each, f"{root}{each.removeprefix(MOUNT)}") for each in paths)
        fills = () if scratch is None else (Bind(scratch, f"{root}{scratch.removeprefix(MOUNT)}", writable=True),)
        keeps = () if self._location.startswith("/") or not lasting else self._kept(root, paths[0])
        return (*reads, *fills, *keeps)

    def _kept(self, root: str, path: str) -> tuple[Bind, ...]:
        """Return a mount of the volume, and what covers it, so that nothing in the container can see it."""
        return (Bind(_KEPT, self._location), Bind(_OVER_KEPT, f"{root}{path.removeprefix(MOUNT)}"))

    def mounting(self, places: Collection[str]) -> Mounting:
        """Return what decides, for one container with these places, how it goes on when they cannot be mounted."""
        return Mounting(self, places)

    def is_stored(self, place: str) -> bool:
        """Return whether a place is in the store; raises `StoreError`."""
        with self._open() as shop:
            return shop.manifest(place) is not None

    def give_whole(self) -> bool:
        """Give containers the whole store from now on; return whether that is another way than the one before."""
        if self._whole or self._location.startswith("/"):
            return False
        self._whole = True
        return True

    def _find_root(self) -> str:
        """Return the directory of the engine's host that has the store; empty: none is known."""
        if self._location.startswith("/"):
            return self._location.rstrip("/")
        if self._root is None:
            with self._engine.failures(f"looking at volume {self._location}"):
                try:
                    self._root = _directory(self._engine.api.inspect_volume(self._location))
                except docker.errors.NotFound:
                    return ""
        return self._root


class Removed(StoreError):
    """A place is not in the store any more, from which a container was to be started."""


class Mounting:
    """Decides how it goes on when an engine could not give a container its places in the store."""

    def __init__(self, access: Access, places: Collection[str]) -> None:
        self._access, self._places = access, places
        self._tried_again = False

    def goes_on(self, binds: Collection[Bind], error: EngineError) -> bool:
        """Return whether to try again after this error of a container with these binds.

        A place may have been removed and made again just now. An engine may also refuse to mount directories of its
        own volumes; then containers get the whole of it.

        Raises:
            Removed: one of the places is not there any more.
        """
        if not any(each.is_folder and each.source in str(error) for each in binds):
            return False
        for place in self._places:
            if not self._access.is_stored(place):
                raise Removed(f"{place} is not in the store any more: it was removed just now") from error
        if not self._tried_again:
            self._tried_again = True
            return True
        return self._access.give_whole()


def _directory(volume: Mapping[str, Any]) -> str:
    """Return where the files of a volume always are; those of other drivers are mounted for containers only."""
    where = volume.get("Mountpoint")
    if volume.get("Driver") != "local" or volume.get("Options") or not isinstance(where, str):
        return ""
    return where if where.startswith("/") else ""


class Workshop:
    """A helper container with the store at `/store`; it and all that runs in it end with its owner.

    Args:
        helper: the container, or a function that starts it when it is first needed.
        location: the store's volume name or absolute directory.
        run_id: of the run.
        remembered: what earlier looks have seen; `None`: each look asks the helper.

    Attributes:
        made: places that were filled through it.
        spared: scratch folders that somebody else removes, as something in them is still used.
    """

    def __init__(
        self,
        helper: Container | Callable[[], Container],
        location: str,
        run_id: str = "",
        remembered: Manifests | None = None,
    ) -> None:
        self._helper = helper
        self._run_id = run_id
        self._remembered = remembered
        self.made: list[str] = []
        self.spared: Collection[str] = ()
        self._location = location

    @property
    def container(self) -> Container:
        """The helper; raises `StoreError` when it is to be started and the engine cannot give it the store."""
        if callable(self._helper):
            self._helper = self._helper()
        return self._helper

    @property
    def location(self) -> str:
        """Where the store is: a volume's name, or a directory."""
        return self._location

    @property
    def engine(self) -> Engine:
        """The engine that has the store."""
        return self.container.engine

    @contextmanager
    def beside(self, image: str) -> Iterator[Container]:
        """Give a container of another image, which never starts, to copy out of it; raises `EngineError`."""
        name = f"virtainers-{self._run_id}-beside-{secrets.token_hex(2)}"
        container = Container(
            self.engine, Plan(name=name, kind="helper", image=image, entrypoint=("none",)), self._run_id
        )
        try:
            yield container
        finally:
            container.close()

    def manifest(self, place: str) -> dict[str, Any] | None:
        """Give the manifest in the folder `place` (`guests/KEY`); None when the store has none, or a damaged one.

        The place counts as used now.
        """
        code, output = self.container.run(["sh", "-c", _READ_MANIFEST, "sh", path(place)])
        found = _mapping(output) if code == 0 else None
        if self._remembered is not None:
            self._remembered.put(place, found)
        return found

    def recall(self, place: str) -> dict[str, Any] | None:
        """Return a manifest as some process of this user saw it within the last day, or else `manifest`.

        The place may be gone by now, or another one: for what starts VMs from it, and copes with that.
        """
        found = None if self._remembered is None else self._remembered.get(place)
        return self.manifest(place) if found is None else found

    def forget(self, place: str) -> None:
        """Have the store looked at when this place is next asked for."""
        if self._remembered is not None:
            self._remembered.put(place, None)

    @contextmanager
    def new(self, place: str) -> Iterator[str]:
        """Give an empty folder to fill in the block; it becomes `place` at the end, or goes away on failure.

        From then on nothing is to change in it, and its files may not be written to.

        Raises:
            StoreError: the store cannot be written.
        """
        target = path(place)
        with self.scratch() as scratch:
            yield scratch
            self.shell(_GIVE_PLACE, scratch, target, target.rpartition("/")[0])
            self.forget(place)
            self.made.append(place)

    @contextmanager
    def scratch(self) -> Iterator[str]:
        """Give an empty folder; unless it is `spared`, it goes when the block ends; raises `StoreError`.

        Those of dead builders are removed here, once nothing in them has changed for a while: others may be at work,
        also other users of the same engine.
        """
        scratch = f"{MOUNT}/.scratch-{secrets.token_hex(4)}"
        self.shell(_MAKE_SCRATCH, scratch)
        try:
            yield scratch
        finally:
            if scratch not in self.spared and not self.container.ended:
                self.container.run(["sh", "-c", _DROP_SCRATCH, "sh", scratch])

    def shell(self, script: str, *words: str) -> str:
        """Run a shell script in the helper and give its output; raises `StoreError` with its last lines.

        Names are no part of the script: they are `words`, which it calls "$1", "$2" and so on.
        """
        code, output = self.container.run(["sh", "-c", script, "sh", *words])
        text = output.decode(errors="replace")
        if code != 0:
            raise StoreError(self.explain(f"work in the store failed (exit code {code})", text))
        return text

    def explain(self, what: str, output: str) -> str:
        """Say what failed, with the last lines of its output, and what mends the two usual causes."""
        lines = [line for line in output.splitlines() if line.strip()][-12:]
        said = "\n".join(f"  | {line}" for line in lines)
        remedy = ""
        if _NO_SPACE in output.lower():
            remedy = (
                f"\nThe disk that holds the store ({self._location}) is full: make room, or use --virtainer-store."
            )
        elif _READ_ONLY in output.lower():
            remedy = f"\nThe store ({self._location}) is read-only: choose another one with --virtainer-store."
        return f"{what}:\n{said}{remedy}"


@contextmanager
def workshop(
    engine: Engine,
    location: str,
    runtime_image: str,
    run_id: str,
    *,
    writable: bool = True,
    remembered: Manifests | None = None,
) -> Iterator[Workshop]:
    """Open the store at `location` (volume name or absolute directory) during the block.

    With what is `remembered` of it, a helper is started only when that does not suffice.

    Raises:
        StoreError: the engine cannot give us the store.
    """
    plan = Plan(
        name=f"virtainers-{run_id}-store-{secrets.token_hex(2)}",  # threads may have it open at the same time
        kind="helper",
        image=runtime_image,
        entrypoint=("cat",),  # lives as long as its stdin, which is the lease
        binds=(Bind(MOUNT, location, writable=writable),),
        capabilities=BUILD_CAPABILITIES if writable else (),
    )
    with ExitStack() as opened:

        def start() -> Container:
            try:
                container = Container(engine, plan, run_id)
                container.start()
            except EngineError as error:
                raise StoreError(f"the store {location} cannot be opened: {error}") from error
            opened.callback(container.close)
            return container

        yield Workshop(start() if remembered is None else start, location, run_id, remembered)


def remembered_manifests(engine: Engine, location: str) -> Manifests:
    """Return what is remembered of the store at `location` on this engine; a volume made again is another store."""

    def identity() -> str:
        about: Mapping[str, Any] = {}
        if not location.startswith("/"):
            with engine.failures(f"looking at volume {location}"), suppress(docker.errors.NotFound):
                about = engine.api.inspect_volume(location)
        return json.dumps([engine.kind, engine.url, location, about.get("Mountpoint"), about.get("CreatedAt")])

    return Manifests(identity)


def _mapping(text: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
