"""From a start to a ready machine, and what is kept of one: as a template for clones, or to go back to in place."""

from __future__ import annotations

import contextlib
import itertools
import re
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import paramiko

from pytest_virtainers.errors import (
    EngineError,
    SnapshotError,
    SSHError,
    TemplateError,
    Unclonable,
    UsageError,
    VirtainerError,
)
from pytest_virtainers.ssh import client, resumable
from pytest_virtainers.ssh.keys import KeyPair
from pytest_virtainers.support import timings
from pytest_virtainers.vm import individual, provision_limit, readiness
from pytest_virtainers.vm.power import Power

if TYPE_CHECKING:
    from collections.abc import Collection

    from pytest_virtainers.ssh.keys import Keys

_SNAPSHOT_NAME = re.compile("[A-Za-z0-9_-]{1,64}")
_CLONE_SECONDS = 60.0
_LOGIN_SECONDS = 60.0
_SESSION_SECONDS = 10.0
_FREEZE_SECONDS = 10.0
_SETTLE_SECONDS = 0.5
_POLL_SECONDS = 0.02
_NO_HELPER = 3  # an exit code of the supervisor's (images/runtime/virtainer/snapshot.py)


@dataclass(frozen=True)
class Snapshot:
    """A machine's memory and disk at one instant; it is kept as long as the machine."""

    vm: Saving
    name: str
    session: resumable.Session | None = field(default=None, repr=False, compare=False)
    """The SSH session that was open then, if it can be gone on in."""
    cards: frozenset[str] = field(default=frozenset(), repr=False, compare=False)
    """The names of the network cards that were added until then."""


def free_name(taken: Collection[str]) -> str:
    """Give the first of s1, s2, … that no snapshot has."""
    return next(name for number in itertools.count(1) if (name := f"s{number}") not in taken)


class Saving(Power):
    """The part of the handle that brings a machine up, saves it, and goes back to what was saved."""

    # The names of the snapshots that were made through this handle, and those of them that are still there.
    _given: frozenset[str] = frozenset()
    _kept: frozenset[str] = frozenset()

    def wait_until_ready(self) -> None:
        """Wait for SSH and cloud-init after a start; raises `BootError` and its children, `VMGone` or `SSHError`."""
        self._wait(
            f"booting {self.name} ({self.spec.image})",
            self._connect,
            self.spec.boot_timeout,
            provisions=True,
        )
        self.run("sync")  # what the first boot has made, such as host keys, a power cut should not undo

    def wait_until_provisioned(self) -> None:
        """Wait until cloud-init has finished, as long as `provision_timeout` allows.

        Raises:
            ProvisionTimeout: it took longer.
            BootError: it reports errors; the message has them.
        """
        __tracebackhide__ = True
        machine = readiness.Machine(self.name, self.console, self._check_alive)
        readiness.wait_for_cloud_init(machine, self._connected(), provision_limit.of(self))

    def wait_until_resumed(self) -> None:
        """Wait until a machine that was started again from its evidence lets us in; raises as `wait_until_ready`."""
        __tracebackhide__ = True
        self._wait(
            f"resuming {self.name} ({self.spec.image})",
            self._connect,
            self.spec.boot_timeout,
            settle=lambda *_: None,
        )

    def wait_until_cloned(self, session: resumable.Session | None) -> None:
        """Wait until a clone runs, knows who it is, and lets us in.

        Args:
            session: that was open when its template was saved; without one, or when it is broken, we log in.

        Raises:
            BootTimeout: not within the time that restoring may take.
            VMGone, SSHError: as `run` does.
        """
        __tracebackhide__ = True
        deadline = time.monotonic() + min(_CLONE_SECONDS, self.spec.boot_timeout)
        self._wait_until_said("clone restored", lambda: self._supervisor.restored, deadline)
        for part, seconds in self._supervisor.restoring.items():
            timings.part(part, seconds)
        if session is not None and self._go_on_in(session):
            self._wait_until_individual(deadline)
            return
        self._wait(
            f"cloning {self.name} ({self.spec.image})",
            self._connect,
            deadline - time.monotonic(),
            settle=lambda _machine, _connection: self._wait_until_individual(deadline),
        )

    def _wait_until_individual(self, deadline: float, before: int = 0) -> None:
        """Wait until the helper in the guest has done its work once more than `before`."""
        __tracebackhide__ = True
        self._wait_until_said("individual", lambda: self._supervisor.helpers_done > before, deadline)

    def _wait_for_helper(self, deadline: float, before: int = 0) -> None:
        """Wait until a helper in the guest waits, once more than `before`."""
        __tracebackhide__ = True
        self._wait_until_said("ready", lambda: self._supervisor.helpers_ready > before, deadline)

    def _go_on_in(self, session: resumable.Session) -> bool:
        """Make a session that was saved with the guest the connection; tell whether it answers."""
        trouble = (resumable.Unsuitable, EngineError, *client.FAILURES)
        with timings.phase("resume session"), contextlib.suppress(*trouble):
            connection = resumable.resume(self.endpoint.dial_line(), session)
            if connection.open_ahead(_SESSION_SECONDS):
                self._connection = connection
                return True
            connection.close()
        return False

    def _frozen_session(self) -> resumable.Session | None:
        """Give what it takes to go on in the session that is open now; None when that is impossible."""
        if self._connection is None or self._reversed:  # sshd would listen on, and we would not know for whom
            return None
        with contextlib.suppress(resumable.Unsuitable, *client.FAILURES):
            self._connection.close_ahead()
            return resumable.freeze(self._connection, _FREEZE_SECONDS)
        return None

    def _rests(self) -> bool:
        transport = None if self._connection is None else self._connection.transport
        return isinstance(transport, resumable.Recording) and transport.at_rest

    def renew_identity(self) -> None:
        """Give a clone its own machine-id and SSH host key, and connect anew; raises as `wait_until_cloned`."""
        __tracebackhide__ = True
        host_key = KeyPair.generate()
        individual.renew(self, host_key)
        self.keys = replace(self.keys, host=host_key)
        self._wait(f"renewing {self.name}", self._connect_renewed, _CLONE_SECONDS, settle=lambda *_: None)

    def become_another(self, keys: Keys) -> None:
        """Make a clone the machine of another template: with these keys, and a machine-id of its own.

        The session goes on; who logs in from now on uses those keys. Raises `BootError` when the guest cannot do it.
        """
        __tracebackhide__ = True
        self._check_alive()
        individual.take_over(self, keys, self.spec.authorized_keys)
        self.keys = keys

    def _connect_renewed(self, seconds: float) -> client.Connection:
        try:
            return self._connect(seconds)
        except paramiko.BadHostKeyException:  # sshd is just reading the new one
            raise ConnectionAbortedError("sshd still shows the template's host key") from None

    def _open_line(self) -> resumable.Session | None:
        """Open the SSH session that clones resume, and close the current one; return None if there can be none.

        What the guest has in memory for its disk is written out, or each clone would do so first of all.
        """
        with contextlib.suppress(resumable.Unsuitable, EngineError, SSHError, *client.FAILURES):
            if not self.run(resumable.SERVE, sudo=True, check=False).ok:
                return None
            self._end_session()
            stream = self.container.stream(resumable.COMMAND)
            connection = client.log_in(stream, self.user, self.keys, _LOGIN_SECONDS, resumable.Recording)
            try:
                # What sshd and the shell load for a command, the clones have then.
                connection.execute(
                    "sync", stdin=None, stdout=bytes, stderr=bytes, deadline=None, check=self._check_alive
                )
                return resumable.freeze(connection, _LOGIN_SECONDS)
            finally:
                connection.close()
        return None

    def _end_session(self) -> None:
        """Close the SSH connection; the guest ends one on the line by itself, as it makes room for the next there."""
        if self._connection is None:
            return
        if isinstance(self._connection.transport, resumable.Recording):
            deadline = time.monotonic() + _SESSION_SECONDS
            while self._connection.alive and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
        self._connection.close()

    def _helper_came_along(self) -> bool:
        """Return whether the helper still waits that was saved with the template from which this machine started."""
        if not self._supervisor.restored or self._supervisor.helpers_ready or not self._supervisor.helpers_done:
            return False
        return any(each["label"] == "port" and each["frontend-open"] for each in self.qmp("query-chardev"))

    def save(self, hostname: str) -> resumable.Session | None:
        """Save this machine, called `hostname`, as a template into its folder; it ends.

        Returns:
            The SSH session that its clones go on with, if they can.

        Raises:
            Unclonable: the guest lacks what makes its clones individuals.
            TemplateError: it could not be saved; the message has the supervisor's words.
        """
        __tracebackhide__ = True
        deadline = time.monotonic() + _CLONE_SECONDS
        if not self._helper_came_along():
            ready = self._supervisor.helpers_ready
            individual.leave_helper(self, hostname)
            self._wait_for_helper(deadline, ready)
        session = self._open_line()
        if session is None:
            self.run("sync")
        if self._connection is not None:
            self._connection.close()
        # The guest's side of the former session ends, too.
        time.sleep(_SETTLE_SECONDS)
        code, output = self.container.run(["save"])
        if code != 0:
            raise TemplateError(
                f"{self.spec.image}: its template could not be saved: {output.decode(errors='replace').strip()}"
            )
        with contextlib.suppress(EngineError):  # the container may be gone before the command's end is asked for
            self.container.run(["qmp", '{"execute": "quit"}'])
        if not self.container.wait(_CLONE_SECONDS):
            raise TemplateError(f"{self.spec.image}: its template could not be saved: QEMU did not quit")
        return session

    def snapshot(self, name: str | None = None) -> Snapshot:
        """Keep memory and disk as they are now, to go back to with `restore`; the guest stands still meanwhile.

        Args:
            name: of letters, digits, `-` and `_`; by default it gets one.

        Raises:
            UsageError: the name has something else in it, or there is one of this name.
            SnapshotError: it could not be kept: the message has QEMU's words, what the
                guest lacks for it, or which added disk is in the way.
            VMGone: the machine does not run.
        """
        __tracebackhide__ = True
        if name is not None and not _SNAPSHOT_NAME.fullmatch(name):
            raise UsageError(f"a snapshot's name has letters, digits, - and _, 64 at most, not {name!r}")
        if name is not None and name in self.snapshots():
            raise UsageError(f"{self.name} has a snapshot {name} already. Choose another name")
        if self._halted:
            self._check_alive()
        name = name or free_name(self._given)
        done = self._supervisor.helpers_done
        deadline = time.monotonic() + _CLONE_SECONDS
        session = self._frozen_session()
        if not self._in_place("save", name, "--helper"):
            self._have_a_helper(deadline)
            session = self._frozen_session()
            self._in_place("save", name)
        if not self._rests():  # somebody else has used it meanwhile
            session = None
        self._given |= {name}
        self._kept |= {name}
        self._wait_until_individual(deadline, done)
        return Snapshot(self, name, session, self._cards())

    def _have_a_helper(self, deadline: float) -> None:
        __tracebackhide__ = True
        ready = self._supervisor.helpers_ready
        try:
            individual.leave_helper(self, hostname="")
        except Unclonable as lack:
            raise SnapshotError(f"{self.name}: its snapshots cannot be restored: {lack}") from lack
        self._wait_for_helper(deadline, ready)

    def snapshots(self) -> list[str]:
        """List the names of the snapshots that the machine's disk has, the newest last; an earlier handle's, too."""
        __tracebackhide__ = True
        nodes = self.qmp("query-named-block-nodes", flat=True)
        disk = next(each for each in nodes if each["node-name"] == "disk")
        there = disk["image"].get("snapshots", ())
        return [each["name"] for each in sorted(there, key=lambda each: (each["date-sec"], each["date-nsec"]))]

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot of this machine: memory and disk as they were, the clock right.

        Disks and network cards that were added since are removed. What runs over SSH ends, with what is forwarded.
        SSH goes on in the session that was open at that instant, if that was possible; else a new login is made.

        Raises:
            UsageError: it is one of another machine, or there is none of this name.
            SnapshotError: it could not be restored; the message has QEMU's words.
            BootError: the guest did not answer afterwards.
        """
        __tracebackhide__ = True
        self._check_kept(snapshot)  # QEMU would halt the machine before it looks
        if gone := snapshot.cards - self._cards():
            raise SnapshotError(
                f"{self.name}: cannot restore {snapshot.name}: network cards were removed since: "
                f"{', '.join(sorted(gone))}. Take another snapshot, or launch a new VM"
            )
        stood_still = self._off or bool(self._halted)
        try:
            self._unplug_all_but(snapshot.cards, by_reset=stood_still)
        except VirtainerError as error:
            raise SnapshotError(f"{self.name}: cannot restore {snapshot.name}: {error}") from error
        done = self._supervisor.helpers_done
        deadline = time.monotonic() + _CLONE_SECONDS
        if self._off:  # QEMU lets nothing run after a shutdown but what was reset
            self.qmp("system_reset")
        with self._connection_replaced():
            self._in_place("load", snapshot.name)
            self.console.start_anew()  # not before: a kernel that has panicked goes on to tell of it
            if stood_still:  # QEMU leaves it so
                self.qmp("cont")
                self._wait_until_on(deadline)
                self._halted = ""
            if snapshot.session is not None:
                self._wait_until_individual(deadline, done)
                if self._go_on_in(snapshot.session):
                    return
        self._wait(
            f"restoring {self.name}",
            self._connect,
            _CLONE_SECONDS,
            settle=lambda _machine, _connection: self._wait_until_individual(deadline, done),
        )

    def delete_snapshot(self, snapshot: Snapshot) -> None:
        """Give the room of a snapshot of this machine, in its overlay, to what is written later.

        Raises:
            UsageError: it is one of another machine, or there is none of this name.
            SnapshotError: QEMU refuses; the message has its words.
        """
        __tracebackhide__ = True
        self._check_kept(snapshot)
        self._in_place("delete", snapshot.name)
        self._kept -= {snapshot.name}

    def _check_kept(self, snapshot: Snapshot) -> None:
        __tracebackhide__ = True
        if snapshot.vm is not self:
            raise UsageError(f"{snapshot!r} is not a snapshot of {self!r}")
        if snapshot.name not in self._kept and snapshot.name not in (there := self.snapshots()):
            have = f"it has {', '.join(there)}" if there else "it has none"
            raise UsageError(f"{self.name} has no snapshot {snapshot.name}; {have}")

    def _in_place(self, action: str, *arguments: str) -> bool:
        """Have the supervisor do it; tell whether it was done, which without a helper in the guest it may not be."""
        __tracebackhide__ = True
        self._check_there()
        code, output = self.container.run(["snapshot", action, *arguments])
        if code not in {0, _NO_HELPER}:
            raise SnapshotError(f"{self.name}: snapshot {action} failed: {output.decode(errors='replace').strip()}")
        return code == 0
