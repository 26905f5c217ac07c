"""Snapshots of a running machine, to which it can be restored in place."""

from __future__ import annotations

import itertools
import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_virtainers.errors import SnapshotError, Unclonable, UsageError, VirtainerError
from pytest_virtainers.support.runtime_modules import protocol
from pytest_virtainers.vm import identity

if TYPE_CHECKING:
    from collections.abc import Collection

    from pytest_virtainers.ssh import resumable
    from pytest_virtainers.vm.hotplug import Hotplug
    from pytest_virtainers.vm.machine import Machine

_NAME = re.compile("[A-Za-z0-9_-]{1,64}")
_SECONDS = 60.0


@dataclass(frozen=True)
class Snapshot:
    """The memory and disk of a VM at one instant, kept as long as the VM.

    Attributes:
        name: its name.
    """

    name: str
    machine: Machine = field(repr=False)  # what follows is for `Snapshots`
    session: resumable.Session | None = field(default=None, repr=False, compare=False)  # that was open then
    nic_names: frozenset[str] = field(default=frozenset(), repr=False, compare=False)  # that had been added


def free_name(taken: Collection[str]) -> str:
    """Return the first of s1, s2, … that is not taken."""
    return next(name for number in itertools.count(1) if (name := f"s{number}") not in taken)


class Snapshots:
    """Makes, restores and deletes the snapshots of one machine.

    Args:
        machine: the machine.
        hotplug: its added disks and network cards.
    """

    def __init__(self, machine: Machine, hotplug: Hotplug) -> None:
        self._machine, self._hotplug = machine, hotplug
        self._health, self._ssh = machine.health, machine.ssh
        self._made: set[str] = set()  # names of snapshots that were made here
        self._present: set[str] = set()  # those of them that were not deleted

    def make(self, name: str | None) -> Snapshot:
        """Make a snapshot, as `VM.snapshot` documents."""
        __tracebackhide__ = True
        machine, supervisor = self._machine, self._health.supervisor
        if name is not None and not _NAME.fullmatch(name):
            raise UsageError(f"a snapshot's name has letters, digits, - and _, 64 at most, not {name!r}")
        if name is not None and name in self.names():
            raise UsageError(f"{machine.name} has a snapshot {name} already. Choose another name")
        self._health.check_not_halted()
        name = name or free_name(self._made)
        done = supervisor.helpers_done
        deadline = time.monotonic() + _SECONDS
        session = self._ssh.freeze()
        if not self._in_place("save", name, "--helper"):
            try:
                identity.leave_helper(machine, hostname="", deadline=deadline)
            except Unclonable as lack:
                raise SnapshotError(f"{machine.name}: its snapshots cannot be restored: {lack}") from lack
            session = self._ssh.freeze()
            self._in_place("save", name)
        if not self._ssh.at_rest:  # another thread has used it in between
            session = None
        self._made.add(name)
        self._present.add(name)
        identity.wait_until_done(machine, deadline, done)
        return Snapshot(name, machine, session, self._hotplug.nic_names)

    def names(self) -> list[str]:
        """List the names of the snapshots on the disk, the newest last."""
        __tracebackhide__ = True
        nodes = self._machine.qmp.execute("query-named-block-nodes", flat=True)
        disk = next(each for each in nodes if each["node-name"] == "disk")
        there = disk["image"].get("snapshots", ())
        return [each["name"] for each in sorted(there, key=lambda each: (each["date-sec"], each["date-nsec"]))]

    def restore(self, snapshot: Snapshot | str) -> None:
        """Restore a snapshot, as `VM.restore` documents."""
        __tracebackhide__ = True
        machine, health = self._machine, self._health
        snapshot = self._find(snapshot)  # first, as QEMU would stop the machine before it looks
        if removed := snapshot.nic_names - self._hotplug.nic_names:
            raise SnapshotError(
                f"{machine.name}: cannot restore {snapshot.name}: network cards were removed since: "
                f"{', '.join(sorted(removed))}. Take another snapshot, or launch a new VM"
            )
        stood_still = health.is_off or bool(health.halted)
        try:
            self._hotplug.remove_all_except(snapshot.nic_names, by_reset=stood_still)
        except VirtainerError as error:
            raise SnapshotError(f"{machine.name}: cannot restore {snapshot.name}: {error}") from error
        done = health.supervisor.helpers_done
        deadline = time.monotonic() + _SECONDS
        if health.is_off:  # after a shutdown, QEMU lets nothing run that was not reset
            machine.qmp.execute("system_reset")
        with self._ssh.replaced():
            self._in_place("load", snapshot.name)
            machine.console.forget_reports()  # only now: a kernel that panicked still writes about it
            if stood_still:  # QEMU leaves it so
                machine.qmp.execute("cont")
                health.wait_until_on(deadline)
                health.halted = ""
            if snapshot.session is not None:
                identity.wait_until_done(machine, deadline, done)
                if self._ssh.resume(snapshot.session):
                    return
        self._ssh.establish(
            f"restoring {machine.name}",
            _SECONDS,
            settle=lambda: identity.wait_until_done(machine, deadline, done),
        )

    def delete(self, snapshot: Snapshot | str) -> None:
        """Delete a snapshot, as `VM.delete_snapshot` documents."""
        __tracebackhide__ = True
        name = self._find(snapshot).name
        self._in_place("delete", name)
        self._present.discard(name)

    def _find(self, snapshot: Snapshot | str) -> Snapshot:
        """Return a snapshot of this machine; raise `UsageError` if there is no such snapshot."""
        __tracebackhide__ = True
        machine = self._machine
        found = Snapshot(snapshot, machine) if isinstance(snapshot, str) else snapshot
        if found.machine is not machine:
            raise UsageError(f"{machine.name}: {found.name} is a snapshot of another VM, {found.machine.name}")
        if found.name not in self._present and found.name not in (there := self.names()):
            have = f"it has {', '.join(there)}" if there else "it has none"
            raise UsageError(f"{machine.name} has no snapshot {found.name}; {have}")
        return found

    def _in_place(self, action: str, *arguments: str) -> bool:
        """Ask the supervisor to do it; return whether it did: some actions require a helper in the guest."""
        __tracebackhide__ = True
        machine = self._machine
        self._health.check_qemu()
        code, output = machine.container.run(["snapshot", action, *arguments])
        if code not in {0, protocol.NO_HELPER}:
            words = output.decode(errors="replace").strip()
            raise SnapshotError(f"{machine.name}: snapshot {action} failed: {words}")
        return code == 0
