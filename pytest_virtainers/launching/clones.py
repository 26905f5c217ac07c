"""Clone the template of a VM's shape, and decide what happens when a clone does not become ready."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_virtainers.errors import BadTemplate, BootError, SSHError, VirtainerError, VMGone
from pytest_virtainers.launching.layering import NotLayered
from pytest_virtainers.launching.starting_vms import closing_on_failure
from pytest_virtainers.support.timings import Record, phase, recording

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_virtainers.config.spec import Spec
    from pytest_virtainers.guests.images import GuestImage
    from pytest_virtainers.launching.bring_up import BringUp
    from pytest_virtainers.launching.damage import Damage
    from pytest_virtainers.launching.failed import FailedVMs
    from pytest_virtainers.launching.guest_images import GuestImages
    from pytest_virtainers.launching.templates import Template, Templates
    from pytest_virtainers.ssh.keys import Keys
    from pytest_virtainers.support.progress import Progress
    from pytest_virtainers.vm.vm import VM

# One failed clone may be due to a busy machine; two are a sign of a bad template, and a new one is made.
_TRIES = 3


class Clones:
    """Clones the templates of one run.

    Args:
        templates: templates of the run.
        guests: guest images of the run.
        bring_up: starts single VMs.
        failed: keeps VMs that do not become ready.
        damage: knows which templates must not be used.
        in_use: returns whether a detached VM has its disk on a template, which then must stay.
        durations: where the seconds of each VM are added.
        progress: where decisions are shown.
    """

    def __init__(
        self,
        templates: Templates,
        guests: GuestImages,
        bring_up: BringUp,
        failed: FailedVMs,
        damage: Damage,
        *,
        in_use: Callable[[Template], bool],
        durations: list[Record],
        progress: Progress,
    ) -> None:
        self._templates, self._guests, self._bring_up, self._failed = templates, guests, bring_up, failed
        self._damage, self._in_use = damage, in_use
        self._durations, self._progress = durations, progress

    def clone(self, spec: Spec, guest: GuestImage, node_id: str) -> VM:
        """Clone the template of this shape; make one that does not restore again, once.

        A VM that cannot be cloned is booted. Raises as `Launcher.launch` does.
        """
        __tracebackhide__ = True
        for tries in itertools.count(1):
            template = self.template(spec, guest, node_id)
            if why := self._damage.why_unusable(template):
                self._progress.note(f"VMs of {spec.image} are booted, not cloned: {why}")
                return self._bring_up.boot(spec, guest, node_id)
            try:
                vm = self._bring_up.clone(spec, guest, template, node_id)
                break
            except (BootError, VMGone, SSHError) as error:
                is_bad = isinstance(error, BadTemplate)
                if tries == _TRIES or (is_bad and not self._guests.is_stored(guest)):
                    raise
                reason = str(error).splitlines()[0]
                # A busy machine, or another process that has just made the template again, is no reason to remove
                # it; the same trouble twice is.
                condemned = is_bad or tries > 1
                if condemned and self._in_use(template):
                    self._progress.note(
                        f"a template of {spec.image} does not restore, and a detached VM has its disk on it: "
                        f"{spec.name} is booted instead: {reason}"
                    )
                    self._failed.make_room_for(spec)
                    return self._bring_up.boot(spec, guest, node_id)
                if self._templates.forget(template, condemned=condemned):
                    self._progress.note(f"a template of {spec.image} does not restore and is made again: {reason}")
                else:
                    self._progress.note(f"a clone of {spec.image} did not become ready, trying again: {reason}")
                self._failed.make_room_for(spec)
        with closing_on_failure(vm):
            self._bring_up.plug_cards(vm)
        return vm

    def ahead(self, spec: Spec, node_id: str) -> VM | None:
        """Clone a template before a test asks for it, in a thread; return `None` if that fails or has no use.

        Errors are ignored here; the test will hit the same ones and report them.
        """
        guest = self._guests.known(spec)
        try:
            template = self._templates.find(spec, guest) if spec.template and guest else None
            if guest is None or template is None or self._damage.why_unusable(template):
                return None
            self._durations.append(record := Record("prefetch"))
            with recording(record):
                return self._bring_up.clone(spec, guest, template, node_id, ahead=True)
        except VirtainerError:
            return None

    def template(self, spec: Spec, guest: GuestImage, node_id: str) -> Template:
        """Return the template of a shape, made if the store lacks it; raises as `Launcher.launch` does."""
        __tracebackhide__ = True
        with phase("template"):
            return self._templates.ensure(spec, guest, _Maker(self, guest, node_id))

    def boot_for_template(self, spec: Spec, guest: GuestImage, keys: Keys, node_id: str, folder: str) -> VM:
        """Boot a VM that can be saved into a folder of the store; raises as `Launcher.launch` does."""
        __tracebackhide__ = True
        self._durations.append(record := Record("template"))
        with recording(record):
            return self._bring_up.boot_for_template(spec, guest, keys, node_id, folder)

    def restore_for_template(
        self, spec: Spec, guest: GuestImage, keys: Keys, node_id: str, *, folder: str, plain: Template
    ) -> VM:
        """Do the same from a copy of its plain template; raises `NotLayered` if a boot may work."""
        __tracebackhide__ = True
        if why := self._damage.why_unusable(plain):
            raise NotLayered(why)
        self._durations.append(record := Record("layer"))
        with recording(record):
            try:
                return self._bring_up.restore_for_template(spec, guest, keys, node_id, folder=folder, plain=plain)
            except NotLayered as reason:
                self._failed.make_room_for(spec)
                if isinstance(reason.__cause__, BadTemplate) and not self._in_use(plain):
                    self._templates.forget(plain, condemned=True)
                raise


@dataclass(frozen=True)
class _Maker:
    """Starts the VMs that become templates, for one launch."""

    clones: Clones
    guest: GuestImage
    node_id: str

    def boot(self, spec: Spec, keys: Keys, folder: str) -> VM:
        __tracebackhide__ = True
        return self.clones.boot_for_template(spec, self.guest, keys, self.node_id, folder)

    def restore(self, spec: Spec, keys: Keys, folder: str, plain: Template) -> VM:
        __tracebackhide__ = True
        return self.clones.restore_for_template(spec, self.guest, keys, self.node_id, folder=folder, plain=plain)
