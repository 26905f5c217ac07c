"""VMs that are kept: started by one process, they are found by name by any other, until they are removed.

All that is known of one is with its container, on the engine: its labels, and its papers, a file with what lets one
in. It is kept from the moment at which its container gets its lasting name; what has not come so far is removed like
all that processes leave which die.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pytest_virtainers.config import parsing
from pytest_virtainers.config.spec import brief
from pytest_virtainers.engine import detect, ownership
from pytest_virtainers.engine.plan import DISK_FOLDER
from pytest_virtainers.errors import EngineError, SpecError, VMGone
from pytest_virtainers.evidence import manifest_file
from pytest_virtainers.evidence.manifest_file import REMEMBERED
from pytest_virtainers.guests import flat_disk
from pytest_virtainers.launching import templates
from pytest_virtainers.launching.lifetime import seconds_to_stop
from pytest_virtainers.ssh import keys
from pytest_virtainers.ssh.endpoint import Endpoint
from pytest_virtainers.ssh.keys import KeyPair, Keys
from pytest_virtainers.store.eviction import USES
from pytest_virtainers.support.paths import locked
from pytest_virtainers.vm.network import Network
from pytest_virtainers.vm.vm import VM

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_virtainers.config.settings import Settings
    from pytest_virtainers.config.spec import Spec
    from pytest_virtainers.engine.base import Container, Engine
    from pytest_virtainers.engine.facts import ContainerInfo
    from pytest_virtainers.launching.launcher import Manager
    from pytest_virtainers.support.progress import Progress

PAPERS = "machine.json"
_FORMAT = 1
_POWER_WAS_CUT = {2, 137}  # how its container ends then (docs/runtime-image.md)


class MachineOff(VMGone):
    """A VM that is kept is switched off."""


@dataclass(frozen=True)
class Machine:
    """A VM that is kept, as the engine tells of it.

    Attributes:
        name: of the VM.
        image: as it was asked for.
        state: the engine's word: `running`, `exited`, …
        address: at which its network reaches it, and this host if it is on that; empty when it does not run.
        created: when, in seconds since 1970.
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
        """Whether it is switched off; one that is paused is neither that nor runs."""
        return self.state in {"created", "exited", "dead"}


def list_all(engine: Engine) -> list[Machine]:
    """List the VMs that are kept, by name; raises `EngineError`."""
    found = engine.containers(f"{ownership.LABEL}={ownership.DETACHED}")
    return sorted((_machine(each) for each in found if ownership.is_kept(each)), key=lambda each: each.name)


def find(engine: Engine, name: str) -> Machine:
    """Give the VM of this name; raises `SpecError` when there is none, or `EngineError`."""
    there = list_all(engine)
    for each in there:
        if each.name == name:
            return each
    names = f"there are {', '.join(each.name for each in there)}" if there else "there is none at all"
    raise SpecError(f"no machine is called {name}; {names}. virtainers run --detach --name {name} makes one")


def keep(manager: Manager, spec: Spec) -> VM:
    """Start a VM that stays; `manager` is one of detached VMs.

    Raises:
        SpecError: there is one of this name.
        VirtainerError: as `Manager.launch` does; nothing of it remains then.
    """
    with locked(f"machine-{spec.name}"):
        if any(each.name == spec.name for each in list_all(manager.engine)):
            raise SpecError(
                f"there is a machine called {spec.name} already: virtainers rm {spec.name} removes it, --name gives "
                "this one another name"
            )
        vm = manager.launch(spec)
        papers = {
            "format": _FORMAT,
            "spec": {**{name: getattr(spec, name) for name in REMEMBERED}, "arch": vm.arch, "firmware": vm.firmware},
            "user": vm.user,
            "keys": asdict(vm.keys),
            "store": manager.store_location,
            **manager.facts(vm),
        }
        vm.container.put("/", {PAPERS: json.dumps(papers).encode()})
        vm.container.keep(ownership.lasting_name(spec.name))
    return vm


@contextlib.contextmanager
def attached(settings: Settings, name: str, progress: Progress) -> Iterator[VM]:
    """Give the handle of a kept VM that runs, for a block; it goes on after that.

    Nothing is connected yet: `wait_until_resumed` does that, or `wait_until_ready` when it was just switched on.

    Raises:
        SpecError: there is none of this name.
        MachineOff: it is switched off.
        EngineError: the engine failed.
    """
    with connected(settings) as engine:
        machine = find(engine, name)
        if not machine.runs:
            raise MachineOff(f"{name} is {machine.state}: virtainers start {name} switches it on")
        container = engine.adopt(machine.container)
        with contextlib.ExitStack() as undo:
            undo.callback(container.close)
            container.follow()
            papers = _papers(container)
            spec = manifest_file.spec(papers["spec"], container.name)
            login, host = (KeyPair(**papers["keys"][whose]) for whose in ("login", "host"))
            network = engine.network(container.network)
            vm = VM(
                spec,
                user=papers["user"],
                keys=Keys(login, host),
                container=container,
                endpoint=Endpoint(engine, container),
                network=Network(spec.first_network, network),
                progress=progress,
            )
            undo.callback(vm.close)
            yield vm


def inspect(engine: Engine, name: str) -> dict[str, Any]:
    """Give all that is known of a VM, but no key; raises as `find` does."""
    machine = find(engine, name)
    papers = _papers(engine.adopt(machine.container))
    host_key = papers.pop("keys")["host"]["public"]
    return {**asdict(machine), **papers, "host_key": host_key}


def stop(engine: Engine, name: str) -> bool:
    """Have the guest switch itself off; when it does not within its time, cut its power. Raises as `find` does.

    Returns:
        Whether its power did not have to be cut; of one that is gone with its end, nobody knows.
    """
    machine = find(engine, name)
    if machine.is_off:
        return True
    container = engine.adopt(machine.container)
    return container.stop(seconds_to_stop(container.environment)) not in _POWER_WAS_CUT


def start(settings: Settings, name: str, progress: Progress) -> None:
    """Switch a VM on and wait until it is ready; raises as `find` does, and as a boot."""
    with connected(settings) as engine:
        machine = find(engine, name)
        if machine.runs:
            raise SpecError(f"{name} is switched on already")
        engine.adopt(machine.container).start()
    try:
        with attached(settings, name, progress) as vm:
            vm.wait_until_ready()
    except MachineOff:
        with connected(settings) as engine:
            said = b"".join(output(engine, name, follow=False)).decode(errors="replace").strip()
        raise VMGone(f"{name} has ended at once: {said.rpartition(chr(10))[2]}") from None


def remove(engine: Engine, name: str, *, force: bool = False) -> None:
    """Remove a VM and its disk.

    Args:
        engine: that has it.
        name: of the VM.
        force: one that runs, too.

    Raises:
        SpecError: there is none of this name, or it runs.
        EngineError: the engine failed.
    """
    machine = find(engine, name)
    if not machine.is_off and not force:
        raise SpecError(
            f"{name} is {machine.state}: virtainers stop {name} switches it off, rm --force removes it as it is"
        )
    engine.adopt(machine.container).remove()


def output(engine: Engine, name: str, *, follow: bool) -> Iterator[bytes]:
    """Give what a VM's console has shown, and what its supervisor has said; with `follow`, until it ends."""
    return engine.adopt(find(engine, name).container).logs(follow=follow)


def commit(manager: Manager, name: str, target: Path) -> dict[str, str]:
    """Write the disk of a VM that is switched off as one flat qcow2 file, a guest image for others.

    Returns:
        What others have to say of it: `user`, `arch` and `firmware`.

    Raises:
        SpecError: there is none of this name, or it runs.
        StoreError: the disk could not be made.
        EngineError: the engine failed.
    """
    machine = find(manager.engine, name)
    if not machine.is_off:
        raise SpecError(f"{name} is {machine.state}, and its disk changes: virtainers stop {name} first")
    container = manager.engine.adopt(machine.container)
    papers = _papers(container)
    store = papers["store"]
    if store != manager.store_location:
        raise SpecError(f"the disk of {name} is made on what is in the store {store}: set VIRTAINER_STORE={store}")
    layer = container.archive(f"{DISK_FOLDER}/{flat_disk.LAYER}")
    if layer is None:
        raise EngineError(f"container {container.name} has no disk at {DISK_FOLDER}/{flat_disk.LAYER}")
    with manager.store() as shop:
        places = templates.layers(container.labels[USES], shop)
    manager.flatten(layer, f"the disk of {name}", places, target)
    return {"user": papers["user"], "arch": papers["spec"]["arch"], "firmware": papers["spec"]["firmware"]}


@contextlib.contextmanager
def connected(settings: Settings) -> Iterator[Engine]:
    """Give the engine for a block; raises `EngineNotFound`."""
    engine = detect.find(settings.engine)
    try:
        yield engine
    finally:
        engine.close()


def _machine(found: ContainerInfo) -> Machine:
    return Machine(
        name=found.labels[ownership.NAME],
        image=found.labels[f"{ownership.LABEL}.image"],
        state=found.state,
        address=found.address,
        created=found.created,
        container=found.name,
    )


def _papers(container: Container) -> dict[str, Any]:
    """Read what is known of a VM; the container's processes could have changed it, so each field is checked."""
    where = f"{PAPERS} in {container.name}"
    try:
        papers = json.loads(container.read(f"/{PAPERS}"))
    except (RecursionError, ValueError) as error:
        raise EngineError(f"{where} cannot be read: {error}") from None
    fields = manifest_file.Fields(where, "", papers)
    if fields.found.get("format") != _FORMAT:
        raise EngineError(
            f"{container.name} was made by another version of virtainers ({brief(papers.get('format'))}, not "
            f"{_FORMAT}): use that one, or remove it with the engine's own command"
        )
    fields.take("user", parsing.user_name)
    manifest_file.spec(papers.get("spec"), where)
    for whose in ("login", "host"):
        pair = fields.inner("keys").inner(whose)
        pair.take("private", keys.private_pem)
        pair.take("public", keys.public_line)
    return fields.found
