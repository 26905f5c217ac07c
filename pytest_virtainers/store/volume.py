"""The store on the engine's side: a volume or directory with guest images and templates.

Layout: `guests/KEY` and `templates/KEY`, folders with a `manifest.json` each. Unfinished work is in `.scratch-*` and
gets its name only when it is complete, so no reader sees a half-made entry. All work happens in helper containers.
"""

from __future__ import annotations

import json
import secrets
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from pytest_virtainers.engine.plan import Bind, Plan
from pytest_virtainers.errors import EngineError, StoreError
from pytest_virtainers.store import places

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from pytest_virtainers.engine.base import Container, Engine
    from pytest_virtainers.store.manifests import Manifests

_ABANDONED_MINUTES = 120
_NO_SPACE = "no space left on device"
_READ_ONLY = "read-only file system"

# Docker's defaults that package installation needs; no mounts, no devices, no network set-up.
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
    touch -c manifest.json 2>/dev/null  # a read-only store that has what is needed works, too
    cat manifest.json
}
"""
_MOVE_TO_PLACE = """
mkdir -p "$3" && find "$1" -type f -exec chmod a-w {} + && sync "$1"/* && rm -rf "$2" && mv -T "$1" "$2"
"""
_MAKE_SCRATCH = f"""
for each in "${{1%/*}}"/.scratch-*; do
    [ ! -e "$each" ] || find "$each" -mmin -{_ABANDONED_MINUTES} -print -quit | grep -q . || rm -rf "$each"
done
rmdir "${{1%/*}}"/guests/* "${{1%/*}}"/templates/* 2>/dev/null  # Podman creates directories that it is to mount
mkdir -m 700 "$1"
"""
# A process that fills the folder may still run: kill all but PID 1 and this shell.
_DROP_SCRATCH = '[ ! -e "$1" ] || { kill -9 -1; rm -rf "$1"; }'


class OpenStore:
    """The opened store: a helper container with it at `/store`, which ends with this process.

    Args:
        engine: the engine with the store.
        helper: the container, or a function that starts it when it is first needed.
        location: the store's volume name or absolute directory.
        run_id: the run's id, for the names of more containers.
        remembered: manifests that were read earlier; `None`: each read uses the helper.

    Attributes:
        engine: the engine with the store.
        location: the store's volume name or absolute directory.
        made: places that were filled through it.
        spared: scratch folders that are still in use, and that others remove.
    """

    def __init__(
        self,
        engine: Engine,
        helper: Container | Callable[[], Container],
        location: str,
        run_id: str = "",
        remembered: Manifests | None = None,
    ) -> None:
        self.engine, self.location = engine, location
        self._helper = helper
        self._run_id = run_id
        self._remembered = remembered
        self.made: list[str] = []
        self.spared: Collection[str] = ()

    @property
    def container(self) -> Container:
        """The helper; raises `StoreError` if it must be started and the engine cannot mount the store."""
        if callable(self._helper):
            self._helper = self._helper()
        return self._helper

    @contextmanager
    def files_of(self, image: str) -> Iterator[Container]:
        """Create a container of another image for a block, to copy files out of it; it never starts."""
        name = f"virtainers-{self._run_id}-files-{secrets.token_hex(2)}"
        container = self.engine.create(
            Plan(name=name, kind="helper", image=image, entrypoint=("none",)), self._run_id
        )
        try:
            yield container
        finally:
            container.close()

    def manifest(self, place: str) -> dict[str, Any] | None:
        """Return the manifest of a place; `None` if the store has none, or a damaged one.

        This counts as a use of the place.
        """
        code, output = self.container.run(["sh", "-c", _READ_MANIFEST, "sh", places.path(place)])
        found = _mapping(output) if code == 0 else None
        if self._remembered is not None:
            self._remembered.put(place, found)
        return found

    def recall(self, place: str) -> dict[str, Any] | None:
        """Return a manifest as a process of this user read it within the last day, or else `manifest`.

        The place may have been removed or replaced since, so the caller must handle that.
        """
        found = None if self._remembered is None else self._remembered.get(place)
        return self.manifest(place) if found is None else found

    def forget(self, place: str) -> None:
        """Forget what `recall` would return for a place."""
        if self._remembered is not None:
            self._remembered.put(place, None)

    @contextmanager
    def new(self, place: str) -> Iterator[str]:
        """Yield the path of an empty folder to fill; at the end of the block it becomes `place`.

        After a failure it is removed. The files of a place are read-only and must not change.

        Raises:
            StoreError: the store cannot be written to.
        """
        target = places.path(place)
        with self.scratch() as scratch:
            yield scratch
            self.shell(_MOVE_TO_PLACE, scratch, target, target.rpartition("/")[0])
            self.forget(place)
            self.made.append(place)

    @contextmanager
    def scratch(self) -> Iterator[str]:
        """Yield the path of an empty folder, which is removed after the block unless it is `spared`.

        This also removes folders of dead builders, once nothing in them has changed for two hours: other users of the
        same engine may be at work.

        Raises:
            StoreError: the store cannot be written to.
        """
        scratch = f"{places.MOUNT}/.scratch-{secrets.token_hex(4)}"
        self.shell(_MAKE_SCRATCH, scratch)
        try:
            yield scratch
        finally:
            if scratch not in self.spared and not self.container.ended:
                self.container.run(["sh", "-c", _DROP_SCRATCH, "sh", scratch])

    def shell(self, script: str, *words: str) -> str:
        """Run a shell script in the helper; return its output, or raise `StoreError` with its last lines.

        The script must be a constant: it reads names from `words` as "$1", "$2" and so on.
        """
        code, output = self.container.run(["sh", "-c", script, "sh", *words])
        text = output.decode(errors="replace")
        if code != 0:
            raise StoreError(self.explain(f"work in the store failed (exit code {code})", text))
        return text

    def explain(self, what: str, output: str) -> str:
        """Return an error message with the last lines of output, and the remedy of the two usual causes."""
        lines = [line for line in output.splitlines() if line.strip()][-12:]
        said = "\n".join(f"  | {line}" for line in lines)
        remedy = ""
        if _NO_SPACE in output.lower():
            remedy = f"\nThe disk of the store ({self.location}) is full: free some space, or use --virtainer-store."
        elif _READ_ONLY in output.lower():
            remedy = f"\nThe store ({self.location}) is read-only: choose another one with --virtainer-store."
        return f"{what}:\n{said}{remedy}"


@contextmanager
def open_store(
    engine: Engine,
    location: str,
    runtime_image: str,
    run_id: str,
    *,
    writable: bool = True,
    remembered: Manifests | None = None,
) -> Iterator[OpenStore]:
    """Open the store at `location` (volume name or absolute directory) during the block.

    With `remembered` manifests, a helper is started only when it is needed.

    Raises:
        StoreError: the engine cannot mount the store.
    """
    plan = Plan(
        name=f"virtainers-{run_id}-store-{secrets.token_hex(2)}",  # several threads may open it
        kind="helper",
        image=runtime_image,
        entrypoint=("cat",),  # runs until its stdin, the lease, is closed
        binds=(Bind(places.MOUNT, location, writable=writable),),
        capabilities=BUILD_CAPABILITIES if writable else (),
    )
    with ExitStack() as opened:

        def start() -> Container:
            try:
                container = engine.create(plan, run_id)
                container.start()
            except EngineError as error:
                raise StoreError(f"the store {location} cannot be opened: {error}") from error
            opened.callback(container.close)
            return container

        yield OpenStore(engine, start() if remembered is None else start, location, run_id, remembered)


def _mapping(text: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
