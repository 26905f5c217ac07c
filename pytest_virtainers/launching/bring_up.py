"""Start one VM: boot it, clone it, restore a copy of a template, or start it from its own disk."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_virtainers.engine.tar import Link
from pytest_virtainers.errors import BadTemplate, BootError, SSHError, Unclonable, VMGone
from pytest_virtainers.launching import cloud_init, layering
from pytest_virtainers.launching.container_plan import Start
from pytest_virtainers.launching.layering import NotLayered
from pytest_virtainers.launching.starting_vms import closing_on_failure
from pytest_virtainers.ssh.keys import Keys
from pytest_virtainers.store.access import Removed
from pytest_virtainers.support.runtime_modules import protocol
from pytest_virtainers.support.timings import phase
from pytest_virtainers.vm import provision_limit, saving
from pytest_virtainers.vm.provisioning import provision

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pytest_virtainers.config.spec import Spec
    from pytest_virtainers.guests.images import GuestImage
    from pytest_virtainers.launching.containers import Containers
    from pytest_virtainers.launching.networks import Networks
    from pytest_virtainers.launching.starting_vms import StartingVMs
    from pytest_virtainers.launching.templates import Template
    from pytest_virtainers.support.progress import Progress
    from pytest_virtainers.vm.vm import VM


@dataclass(frozen=True)
class SavedVM:
    """A VM whose disk was saved.

    Attributes:
        spec: spec of the VM.
        guest: the guest image on which the disk was made.
        user: the login user.
        keys: keys of which the login's private and the host's public half are known.
        environment: variables of the container, over those from `spec`.
        disk: returns the content of the container's `/mounted` as a tar stream, from its beginning each time.
        seed_iso: its cloud-init seed; empty: none.
    """

    spec: Spec
    guest: GuestImage
    user: str
    keys: Keys
    environment: Mapping[str, str]
    disk: Callable[[], Iterator[bytes]]
    seed_iso: bytes


class BringUp:
    """Starts single VMs of one run and waits until they are ready; when that fails, nothing of them remains.

    Args:
        containers: starts their containers.
        starting_vms: turns these into VMs that are ready.
        networks: networks of the run.
        verify: called with place and identity of what a VM was started from, to check that in the background.
        progress: where long steps are shown.
    """

    def __init__(
        self,
        containers: Containers,
        starting_vms: StartingVMs,
        networks: Networks,
        *,
        verify: Callable[[str, str], object],
        progress: Progress,
    ) -> None:
        self._containers, self._starting_vms, self._networks = containers, starting_vms, networks
        self._verify, self._progress = verify, progress

    def boot(self, spec: Spec, guest: GuestImage, node_id: str) -> VM:
        """Boot a VM from its guest image; raises as `Launcher.launch` does."""
        __tracebackhide__ = True
        return self._boot(spec, guest, Keys.generate(), node_id)

    def boot_for_template(self, spec: Spec, guest: GuestImage, keys: Keys, node_id: str, folder: str) -> VM:
        """Boot a VM that can be saved into a folder of the store; raises as `Launcher.launch` does."""
        __tracebackhide__ = True
        return self._boot(spec, guest, keys, node_id, save_into=folder)

    def _boot(self, spec: Spec, guest: GuestImage, keys: Keys, node_id: str, save_into: str = "") -> VM:
        __tracebackhide__ = True
        self._starting_vms.check_wanted()
        user = spec.user or guest.user
        iso = cloud_init.iso(spec, keys, user, cloud_init.instance_id(keys))
        files: dict[str, dict[str, bytes | Link]] = {
            "/": {"image": Link(guest.disk)},
            protocol.SEEDS: {protocol.SEED_ISO: iso},
        }
        start, variables = Start(save_into=save_into), guest.variables(spec.firmware)
        container = self._containers.start(spec, (guest.place,), variables, node_id, start=start, files=files)

        def wait(vm: VM) -> None:
            vm.machine.wait_until_ready()
            if not save_into:
                self.plug_cards(vm)
            if spec.prepare is not None:
                with self._progress.step(f"preparing {spec.name} ({spec.image})") as step:
                    provision_limit.prepare(vm, step)

        vm = self._starting_vms.get_ready(spec, user, keys, container, wait, seed_iso=iso)
        self._verify(guest.place, guest.digest)
        return vm

    def clone(self, spec: Spec, guest: GuestImage, template: Template, node_id: str, *, ahead: bool = False) -> VM:
        """Clone a template, without further network cards.

        Args:
            spec: spec of the VM.
            guest: its guest image.
            template: the template of its shape.
            node_id: id of the test, for labels.
            ahead: whether no test waits for it yet. It then uses only free memory, is not kept if it fails, and
                is not counted on its network until `plug_cards`.

        Raises:
            BadTemplate: the template was removed, or does not restore.
            VirtainerError: as `Launcher.launch` does.
        """
        __tracebackhide__ = True
        if not ahead:
            self._starting_vms.check_wanted()
        places, start = (template.place, template.base), Start(template.folder)
        variables = guest.variables(spec.firmware)
        try:
            container = self._containers.start(spec, places, variables, node_id, start=start, ahead=ahead)
        except Removed as error:
            raise BadTemplate(f"{spec.name}: {error}") from error
        vm = self._starting_vms.get_ready(
            spec,
            template.user,
            template.keys,
            container,
            lambda vm: vm.machine.wait_until_cloned(template.session),
            ahead=ahead,
        )
        if spec.identity == "fresh":
            with closing_on_failure(vm):
                vm.machine.renew_identity()
        self._verify(template.place, template.identity)
        self._verify(guest.place, guest.digest)
        return vm

    def connect(self, vm: VM) -> None:
        """Count a VM that was cloned ahead on its network, and plug its further cards.

        Not earlier: other VMs of these networks may look up who is there.
        """
        __tracebackhide__ = True
        vm.network.join(vm, vm.machine.container.addresses().mac)
        self.plug_cards(vm)

    def plug_cards(self, vm: VM) -> None:
        """Plug the further network cards of a VM; raises as `VM.add_nic` does."""
        __tracebackhide__ = True
        for card in vm.spec.nics:
            vm.nics.add(self._networks.get(card.network.of_more_cards()), card.ip)

    def restore_for_template(
        self, spec: Spec, guest: GuestImage, keys: Keys, node_id: str, *, folder: str, plain: Template
    ) -> VM:
        """Restore a copy of a plain template and make it the VM of `spec`, to be saved into a folder of the store.

        Raises:
            NotLayered: a boot may work.
            VirtainerError: as `Launcher.launch` does.
        """
        __tracebackhide__ = True
        self._starting_vms.check_wanted()
        # What it becomes is no first boot: cloud-init must know the instance, and has nothing more to do in it.
        iso = cloud_init.iso(layering.plain(spec), keys, plain.user, cloud_init.instance_id(plain.keys))
        places, start = (plain.place, plain.base), Start(plain.folder, save_into=folder)
        variables = guest.variables(spec.firmware)
        files: dict[str, dict[str, bytes | Link]] = {protocol.SEEDS: {protocol.SEED_ISO: iso}}
        try:
            container = self._containers.start(spec, places, variables, node_id, start=start, files=files)
        except Removed as error:
            raise NotLayered(str(error)) from error

        def wait(vm: VM) -> None:
            __tracebackhide__ = True
            try:
                vm.machine.wait_until_cloned(plain.session)
                saving.become_another(vm.machine, keys)
            except (BootError, VMGone, SSHError) as error:
                raise NotLayered(str(error).splitlines()[0]) from error
            title = f"provisioning {vm.name} ({spec.image})"
            with self._progress.step(title) as step, phase("provision"):
                try:
                    provision(vm, spec)
                except Unclonable as lack:
                    raise NotLayered(str(lack)) from lack
                provision_limit.prepare(vm, step)

        vm = self._starting_vms.get_ready(spec, plain.user, plain.keys, container, wait, seed_iso=iso)
        self._verify(plain.place, plain.identity)
        self._verify(guest.place, guest.digest)
        return vm

    def start_saved(self, saved: SavedVM) -> VM:
        """Start a VM from its own disk, and do not wait for the guest; raises as `Launcher.start_saved` does."""
        spec, guest = saved.spec, saved.guest
        files: dict[str, dict[str, bytes | Link]] = {"/": {"image": Link(guest.disk)}}
        if saved.seed_iso:
            files[protocol.SEEDS] = {protocol.SEED_ISO: saved.seed_iso}
        environment = {**guest.variables(spec.firmware), **saved.environment}
        container = self._containers.start(spec, (guest.place,), environment, "", files=files, mounted=saved.disk)
        with contextlib.ExitStack() as undo:
            undo.callback(container.close)
            vm = self._starting_vms.make(spec, saved.user, saved.keys, container)
            undo.pop_all()
        return vm
