"""Save a machine as a template, with an SSH session that its clones continue."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from pytest_virtainers.errors import EngineError, SSHError, TemplateError
from pytest_virtainers.ssh import client, resumable
from pytest_virtainers.support.runtime_modules import protocol
from pytest_virtainers.vm import identity
from pytest_virtainers.vm.machine import RESTORE_SECONDS

if TYPE_CHECKING:
    from pytest_virtainers.ssh.keys import Keys
    from pytest_virtainers.vm.machine import Machine

_LOGIN_SECONDS = 60.0
_SETTLE_SECONDS = 0.5


def become_another(machine: Machine, keys: Keys) -> None:
    """Turn a clone into the machine of another template, with these keys and a machine-id of its own.

    The open session stays; later logins use the new keys. Raises `BootError` if the guest cannot do it.
    """
    __tracebackhide__ = True
    machine.health.check_alive()
    identity.take_over(machine, keys, machine.spec.authorized_keys)
    machine.keys = keys
    machine.took_over = True


def save(machine: Machine, hostname: str) -> resumable.Session | None:
    """Save a machine, called `hostname`, as a template into its folder; it ends.

    Returns:
        The SSH session that its clones continue, if they can.

    Raises:
        Unclonable: the guest lacks what gives clones an identity.
        TemplateError: it could not be saved; the message has the supervisor's words.
    """
    __tracebackhide__ = True
    deadline = time.monotonic() + RESTORE_SECONDS
    if not _has_helper_of_template(machine):
        identity.leave_helper(machine, hostname, deadline)
    session = _session_to_keep(machine)
    if session is None:
        session = open_line(machine)
        if session is None:
            machine.commands.run("sync")
        machine.ssh.close()
        time.sleep(_SETTLE_SECONDS)  # the guest's side of the former session ends, too
    code, output = machine.container.run(["save"])
    if code != 0:
        raise TemplateError(
            f"{machine.spec.image}: its template could not be saved: {output.decode(errors='replace').strip()}"
        )
    with contextlib.suppress(EngineError):  # the container may end before the engine reports the command's end
        machine.container.run(["qmp", '{"execute": "quit"}'])
    if not machine.container.wait(RESTORE_SECONDS):
        raise TemplateError(f"{machine.spec.image}: its template could not be saved: QEMU did not quit")
    return session


def open_line(machine: Machine) -> resumable.Session | None:
    """Open the SSH session that clones continue, and close the current one; return `None` if there can be none.

    What the guest has in memory for its disk is written out, or each clone would begin with that.
    """
    with contextlib.suppress(resumable.Unsuitable, EngineError, SSHError, *client.FAILURES):
        if not machine.commands.run(resumable.SERVE, sudo=True, check=False).ok:
            return None
        machine.ssh.end_session()
        stream = machine.container.stream(resumable.COMMAND)
        connection = client.log_in(stream, machine.user, machine.keys, _LOGIN_SECONDS, resumable.Recording)
        try:
            # The clones then have what sshd and the shell load for a command.
            connection.execute(
                "sync", stdin=None, stdout=bytes, stderr=bytes, deadline=None, check=machine.health.check_alive
            )
            return resumable.freeze(connection, _LOGIN_SECONDS)
        finally:
            connection.close()
    return None


def _has_helper_of_template(machine: Machine) -> bool:
    """Return whether the helper still waits that was saved with the template from which this machine started."""
    supervisor = machine.health.supervisor
    if not supervisor.restored or supervisor.helpers_ready or not supervisor.helpers_done:
        return False
    devices = machine.qmp.execute("query-chardev")
    return any(each["label"] == protocol.CLONE_DEVICE and each["frontend-open"] for each in devices)


def _session_to_keep(machine: Machine) -> resumable.Session | None:
    """Freeze the open SSH session if a new login would be no different; return `None` if it might be."""
    if not machine.took_over or not identity.logins_are_the_same(machine):
        return None
    return machine.ssh.freeze()
