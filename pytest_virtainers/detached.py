"""Detached VMs: started by one process, found by name by any other, until they are removed.

Everything about one is stored with its container on the engine: labels, and a file with its spec and keys (`PAPERS`).
A VM is detached from the moment at which its container gets its lasting name. Before that, it is removed like
everything else that a dead process has left.
"""

from __future__ import annotations

import contextlib
import json
import signal
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pytest_virtainers.config import parsing
from pytest_virtainers.engine import detect, ownership
from pytest_virtainers.errors import EngineError, UsageError, VMGone
from pytest_virtainers.evidence import manifest_file
from pytest_virtainers.evidence.manifest_file import REMEMBERED
from pytest_virtainers.launching import templates
from pytest_virtainers.launching.lifetime import seconds_to_stop
from pytest_virtainers.ssh import keys
from pytest_virtainers.ssh.endpoint import Endpoint
from pytest_virtainers.ssh.keys import KeyPair, Keys
from pytest_virtainers.store.entries import USES
from pytest_virtainers.support.paths import locked
from pytest_virtainers.support.runtime_modules import protocol
from pytest_virtainers.vm import machine as vm_machine
from pytest_virtainers.vm.network import Network
from pytest_virtainers.vm.supervisor_events import Reader
from pytest_virtainers.vm.vm import VM

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_virtainers.config.settings import Settings
    from pytest_virtainers.config.spec import Spec
    from pytest_virtainers.engine.base import Container, Engine
    from pytest_virtainers.engine.facts import ContainerInfo
    from pytest_virtainers.launching.launcher import Launcher
    from pytest_virtainers.support.progress import Progress

PAPERS = "machine.json"
_FORMAT = 1
_POWER_WAS_CUT = {protocol.Reason.KILLED.code, 128 + signal.SIGKILL}  # exit codes of its container


class SwitchedOff(VMGone):
    """A detached VM is switched off."""


@dataclass(frozen=True)
class DetachedVM:
    """A detached VM as the engine lists it.

    Attributes:
        name: the VM's name.
        image: the guest image, as the user named it.
        state: the engine's word: `running`, `exited`, …
        address: its IPv4 address on its network; empty while it is switched off.
        created: time of its creation, in seconds since 1970.
        container: the engine's name of its container.
    """

    name: str
    image: str
    state: str
    address: str
    created: int
    container: str

    @property
    def runs(self) -> bool:
        """Whether it is switched on."""
        return self.state == "running"

    @property
    def is_off(self) -> bool:
        """Whether it is switched off; a paused one neither runs nor is switched off."""
        return self.state in {"created", "exited", "dead"}


def list_all(engine: Engine) -> list[DetachedVM]:
    """List the detached VMs by name; raise `EngineError`."""
    found = engine.containers(f"{ownership.LABEL}={ownership.DETACHED}")
    return sorted((_machine(each) for each in found if ownership.is_kept(each)), key=lambda each: each.name)


def find(engine: Engine, name: str) -> DetachedVM:
    """Return the detached VM of this name; raise `UsageError` if there is none, or `EngineError`."""
    there = list_all(engine)
    for each in there:
        if each.name == name:
            return each
    names = f"there are {', '.join(each.name for each in there)}" if there else "there is none"
    raise UsageError(f"no detached VM is called {name}: {names}. To start one: virtainers run --detach --name {name}")


def keep(launcher: Launcher, spec: Spec) -> VM:
    """Start a detached VM.

    Args:
        launcher: a launcher for detached VMs.
        spec: the VM.

    Raises:
        UsageError: there is one of this name.
        VirtainerError: it could not be launched (`Launcher.launch`); nothing of it remains.
    """
    with locked(f"machine-{spec.name}"):
        if any(each.name == spec.name for each in list_all(launcher.engine)):
            raise UsageError(
                f"a detached VM is called {spec.name} already. Remove it (virtainers rm {spec.name}), or choose "
                "another name (--name)"
            )
        vm = launcher.launch(spec)
        remembered = {name: getattr(spec, name) for name in REMEMBERED}
        papers = {
            "format": _FORMAT,
            "spec": {**remembered, "arch": vm.machine.arch, "firmware": vm.machine.firmware},
            "user": vm.user,
            "keys": asdict(vm.machine.keys),
            "store": launcher.store.location,
            **launcher.facts(vm),
        }
        vm.machine.container.put("/", {PAPERS: json.dumps(papers).encode()})
        vm.machine.container.keep(ownership.lasting_name(spec.name))
    return vm


@contextlib.contextmanager
def attached(settings: Settings, name: str, progress: Progress) -> Iterator[VM]:
    """Yield the handle of a detached VM that runs; the VM continues after the block.

    It is not connected yet: call `Machine.wait_until_resumed`, or `Machine.wait_until_ready` if it was just switched
    on.

    Raises:
        UsageError: there is no detached VM of this name.
        SwitchedOff: it is switched off.
        EngineError: the engine failed.
    """
    with connected(settings) as engine:
        machine = find(engine, name)
        if not machine.runs:
            raise SwitchedOff(f"{name} is {machine.state}: virtainers start {name} switches it on")
        container = engine.adopt(machine.container)
        with contextlib.ExitStack() as undo:
            undo.callback(container.close)
            container.follow()
            papers = _papers(container)
            spec = manifest_file.spec(papers["spec"], container.name)
            login, host = (KeyPair(**papers["keys"][whose]) for whose in ("login", "host"))
            network = engine.network(container.network)
            launched = vm_machine.Machine(
                spec,
                user=papers["user"],
                keys=Keys(login, host),
                container=container,
                endpoint=Endpoint(engine, container),
                network=Network(spec.first_network, network),
                progress=progress,
            )
            undo.callback(launched.close)
            yield VM(launched)


def inspect(engine: Engine, name: str) -> dict[str, Any]:
    """Return everything about a VM except its private keys; errors are those of `find`."""
    machine = find(engine, name)
    papers = _papers(engine.adopt(machine.container))
    host_key = papers.pop("keys")["host"]["public"]
    return {**asdict(machine), **papers, "host_key": host_key}


def stop(engine: Engine, name: str) -> bool:
    """Shut the guest down; if it does not end within its time, cut its power. Errors are those of `find`.

    Returns:
        Whether it ended without a power cut; `True` also if its container was removed before it could be asked.
    """
    machine = find(engine, name)
    if machine.is_off:
        return True
    container = engine.adopt(machine.container)
    return container.stop(seconds_to_stop(container.environment)) not in _POWER_WAS_CUT


def start(settings: Settings, name: str, progress: Progress) -> None:
    """Switch a VM on and wait until it is ready; errors are those of `find` and of a boot."""
    with connected(settings) as engine:
        machine = find(engine, name)
        if machine.runs:
            raise UsageError(f"{name} is already switched on")
        engine.adopt(machine.container).start()
    try:
        with attached(settings, name, progress) as vm:
            vm.machine.wait_until_ready()
    except SwitchedOff:
        with connected(settings) as engine:
            said = b"".join(output(engine, name, follow=False)).decode(errors="replace").strip()
        raise VMGone(f"{name} ended immediately: {said.rpartition(chr(10))[2]}") from None


def remove(engine: Engine, name: str, *, force: bool = False) -> None:
    """Remove a VM and its disk.

    Args:
        engine: the engine with the VM.
        name: the VM's name.
        force: remove it even if it runs.

    Raises:
        UsageError: there is none of this name, or it runs.
        EngineError: the engine failed.
    """
    machine = find(engine, name)
    if not machine.is_off and not force:
        raise UsageError(
            f"{name} is {machine.state}. Switch it off first (virtainers stop {name}), or use rm --force"
        )
    engine.adopt(machine.container).remove()


def output(engine: Engine, name: str, *, follow: bool) -> Iterator[bytes]:
    """Return a VM's console and its supervisor's events as sentences, so far or, with `follow`, until it ends."""
    events = Reader()
    for of_stderr, piece in engine.adopt(find(engine, name).container).logs(follow=follow):
        yield events.feed(piece) if of_stderr else piece
    yield events.end()


def commit(launcher: Launcher, name: str, target: Path) -> dict[str, str]:
    """Write the disk of a VM that is switched off as one flat qcow2 file, to use as a guest image.

    Returns:
        The arguments that it needs as a guest image: `user`, `arch` and `firmware`.

    Raises:
        UsageError: there is none of this name, or it runs.
        ImageError: the disk could not be made.
        EngineError: the engine failed.
    """
    machine = find(launcher.engine, name)
    if not machine.is_off:
        raise UsageError(
            f"{name} is {machine.state}, and its disk changes. Switch it off first: virtainers stop {name}"
        )
    container = launcher.engine.adopt(machine.container)
    papers = _papers(container)
    store = papers["store"]
    if store != launcher.store.location:
        raise UsageError(f"the disk of {name} is made on what is in the store {store}: set VIRTAINER_STORE={store}")
    disk = f"{protocol.IMAGE_DIR}/{protocol.OVERLAY}"
    layer = container.archive(disk)
    if layer is None:
        raise EngineError(f"container {container.name} has no disk at {disk}")
    with launcher.store.open() as opened:
        places = templates.disk_chain(container.labels[USES], opened)
    launcher.disks.flatten(layer, f"the disk of {name}", places, target)
    return {"user": papers["user"], "arch": papers["spec"]["arch"], "firmware": papers["spec"]["firmware"]}


@contextlib.contextmanager
def connected(settings: Settings) -> Iterator[Engine]:
    """Connect to the engine for a block; raise `EngineNotFound`."""
    engine = detect.find(settings.engine)
    try:
        yield engine
    finally:
        engine.close()


def _machine(found: ContainerInfo) -> DetachedVM:
    return DetachedVM(
        name=found.labels[ownership.NAME],
        image=found.labels[f"{ownership.LABEL}.image"],
        state=found.state,
        address=found.address,
        created=found.created,
        container=found.name,
    )


def _papers(container: Container) -> dict[str, Any]:
    """Read `PAPERS`; processes in the container could have changed it, so each field is checked."""
    where = f"{PAPERS} in {container.name}"
    try:
        papers = json.loads(container.read(f"/{PAPERS}"))
    except (RecursionError, ValueError) as error:
        raise EngineError(f"{where} cannot be read: {error}") from None
    fields = manifest_file.Fields(where, "", papers)
    if fields.found.get("format") != _FORMAT:
        raise EngineError(
            f"{container.name} was made by another version of virtainers ({parsing.brief(papers.get('format'))}, not "
            f"{_FORMAT}). Use that version, or remove the container with the engine's own command"
        )
    fields.take("user", parsing.user_name)
    manifest_file.spec(papers.get("spec"), where)
    for whose in ("login", "host"):
        pair = fields.inner("keys").inner(whose)
        pair.take("private", keys.private_pem)
        pair.take("public", keys.public_line)
    return fields.found
