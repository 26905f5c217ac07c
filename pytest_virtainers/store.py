"""The store on the engine's side: a volume or directory with guest images and templates, worked on in helpers.

Layout: `guests/KEY` and `templates/KEY`, folders with a `manifest.json` each. What is under way is in `.scratch-*`
and gets its name only when it is whole, so what is half-made is never seen.
"""

from __future__ import annotations

import json
import secrets
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pytest_virtainers.engine.container import Container, Plan
from pytest_virtainers.errors import EngineError, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from pytest_virtainers.engine.client import Engine

MOUNT = "/store"
_ABANDONED_MINUTES = 120
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


class Workshop:
    """A helper container with the store at `/store`; it and all that runs in it end with its owner.

    Attributes:
        container: the helper.
        made: places that were filled through it.
        spared: scratch folders that somebody else removes, as something in them is still used.
    """

    def __init__(self, container: Container, location: str, run_id: str = "") -> None:
        self.container = container
        self._run_id = run_id
        self.made: list[str] = []
        self.spared: Collection[str] = ()
        self._location = location

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
        code, output = self.container.run(
            # A store that is read-only but full of what is needed works, too.
            ["sh", "-c", f"cd {MOUNT}/{place} && {{ touch -c manifest.json 2>/dev/null; cat manifest.json; }}"]
        )
        if code != 0:
            return None
        try:
            found = json.loads(output)
        except ValueError:
            return None
        return found if isinstance(found, dict) else None

    @contextmanager
    def new(self, place: str) -> Iterator[str]:
        """Give an empty folder to fill in the block; it becomes `place` at the end, or goes away on failure.

        Raises:
            StoreError: the store cannot be written.
        """
        with self.scratch() as scratch:
            yield scratch
            self.shell(
                f"mkdir -p {MOUNT}/{place.partition('/')[0]} && sync {scratch}/* && rm -rf {MOUNT}/{place} && "
                f"mv -T {scratch} {MOUNT}/{place}"
            )
            self.made.append(place)

    @contextmanager
    def scratch(self) -> Iterator[str]:
        """Give an empty folder; unless it is `spared`, it goes when the block ends; raises `StoreError`.

        Those of dead builders are removed here, once nothing in them has changed for a while: others may be at work,
        also other users of the same engine.
        """
        scratch = f"{MOUNT}/.scratch-{secrets.token_hex(4)}"
        self.shell(
            f"for each in {MOUNT}/.scratch-*; do "
            f'[ ! -e "$each" ] || find "$each" -mmin -{_ABANDONED_MINUTES} -print -quit | grep -q . || '
            f'rm -rf "$each"; done; mkdir -m 700 {scratch}'
        )
        try:
            yield scratch
        finally:
            if scratch not in self.spared and not self.container.ended:
                # What fills the folder may still run: end all but PID 1 and this shell.
                self.container.run(["sh", "-c", f"[ ! -e {scratch} ] || {{ kill -9 -1; rm -rf {scratch}; }}"])

    def fetch_flat(self, scratch: str, overlay: str, target: Path) -> None:
        """Write an overlay in a scratch folder, with all that it is made on, as one qcow2 file of this machine.

        Raises:
            StoreError: it cannot be made.
            EngineError: it cannot be copied.
        """
        self.shell(f"cd {scratch} && qemu-img convert -q -f qcow2 -O qcow2 {overlay} flat.qcow2")
        # A name that another user of the folder could guess may be a link that is planted there.
        with TemporaryDirectory(prefix=".virtainer.", dir=target.parent) as private:
            part = Path(private) / "disk"
            self.container.fetch(f"{scratch}/flat.qcow2", part)
            part.replace(target)

    def shell(self, script: str, on_output: Callable[[bytes], object] = lambda _data: None) -> str:
        """Run a shell script in the helper and give its output; raises `StoreError` with its last lines."""
        code, output = self.container.run(["sh", "-c", script], on_output)
        text = output.decode(errors="replace")
        if code != 0:
            raise StoreError(self.explain(f"work in the store failed (exit code {code})", text))
        return text

    @staticmethod
    def is_to_blame(output: str) -> bool:
        """Tell by a failed command's output whether the store has no room, or cannot be written."""
        return _NO_SPACE in output.lower() or _READ_ONLY in output.lower()

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
def workshop(engine: Engine, location: str, runtime_image: str, run_id: str) -> Iterator[Workshop]:
    """Open the store at `location` (volume name or absolute directory) for writing, during the block.

    Raises:
        StoreError: the engine cannot give us the store.
    """
    plan = Plan(
        name=f"virtainers-{run_id}-store-{secrets.token_hex(2)}",  # threads may have it open at the same time
        kind="helper",
        image=runtime_image,
        entrypoint=("cat",),  # lives as long as its stdin, which is the lease
        store=location,
        store_writable=True,
        capabilities=BUILD_CAPABILITIES,
    )
    try:
        container = Container(engine, plan, run_id)
        container.start()
    except EngineError as error:
        raise StoreError(f"the store {location} cannot be opened: {error}") from error
    try:
        yield Workshop(container, location, run_id)
    finally:
        container.close()
