"""Identity of restored guests: clock, random numbers, hostname, machine-id and keys.

A guest that is saved, as a template or in a snapshot, has a helper in it (`clone_helper.py`). When the guest resumes,
the helper sets clock, random numbers and, in a clone, the hostname, together with the supervisor
(`images/runtime/virtainer/clone_agent.py`); then it waits for the next time.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pytest_virtainers.errors import BootError, Unclonable
from pytest_virtainers.support.runtime_modules import protocol
from pytest_virtainers.vm import clone_helper

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_virtainers.ssh.keys import KeyPair, Keys
    from pytest_virtainers.vm.machine import Machine

_PATH = "/run/virtainer-clone.py"
_TAKEN_OVER = "/run/virtainer-taken-over"
LACKS = 90
"""The exit code of a script in a guest that lacks what it needs."""
# Only builtins of the shell: in an emulated guest, to start one program takes as long as all of this.
# journalctl reads only the folder of the current machine-id, while journald keeps writing to the folder it opened.
_RENEW = """
set -e
umask 077
key=
while IFS= read -r line || [ "$line" ]; do key="$key$line
"; done
rm -f /etc/ssh/ssh_host_*
printf %s "$key" >/etc/ssh/ssh_host_ed25519_key
umask 022
echo "$PUBLIC" >/etc/ssh/ssh_host_ed25519_key.pub
read -r former </etc/machine-id || :
IFS=- read -r a b c d e </proc/sys/kernel/random/uuid
echo "$a$b$c$d$e" >/etc/machine-id
for each in /var/log/journal /run/log/journal; do
    [ ! -d "$each/$former" ] || ln -s "$former" "$each/$a$b$c$d$e"
done
[ -L /var/lib/dbus/machine-id ] || [ ! -e /var/lib/dbus/machine-id ] || cp /etc/machine-id /var/lib/dbus/machine-id
{ read -r pid </run/sshd.pid && kill -s HUP "$pid"; } 2>/dev/null ||
    systemctl reload ssh 2>/dev/null || systemctl reload sshd 2>/dev/null || pkill -HUP -o -x sshd
"""
# Write in place, so that the file keeps its owner, mode and label.
ADMIT = f"""
eval "file=~$LOGIN/.ssh/authorized_keys"
lines=
while IFS= read -r line || [ "$line" ]; do
    case $line in *"$FORMER"*) line="${{line%%"$FORMER"*}}$NEXT${{line#*"$FORMER"}}" found=1 ;; esac
    lines="$lines$line
"
done <"$file"
[ "$found" ] || exit {LACKS}
printf %s "$lines$MORE" >"$file"
: >{_TAKEN_OVER}
"""
# What a login reads (groups, PAM's limits and environment, sshd's settings) is in /etc.
_CHANGED = f"""
sync
changed=$(find /etc -cnewer {_TAKEN_OVER} -print -quit) && [ ! "$changed" ]
"""
# The helper leaves the cgroup of the login, which would keep the session open. It joins PID 1's, because the end of a
# unit would keep systemd, journald, D-Bus and logind busy when a clone's first login needs the CPU.
LEAVE = f"""
command -v python3 >/dev/null && {{ [ -d /sys/class/virtio-ports ] || modprobe virtio_console; }} || exit {LACKS}
tries=0
until grep -qsx {protocol.CLONE_PORT} /sys/class/virtio-ports/*/name; do
    tries=$((tries + 1))
    [ $tries -lt 50 ] || exit {LACKS}
    sleep 0.1
done
umask 077
cat >{_PATH} || exit
set -- python3 -I -S {_PATH} {protocol.CLONE_PORT} "$FORMER"
scope=/sys/fs/cgroup/init.scope/cgroup.procs
if [ -w $scope ] || ! command -v systemd-run >/dev/null; then
    setsid -f sh -c 'echo $$ >"$0" || :; exec "$@" </dev/null >/dev/null 2>&1' $scope "$@"
else
    systemd-run --quiet --collect "$@"
fi
"""


def leave_helper(machine: Machine, hostname: str, deadline: float) -> None:
    """Start the helper in the guest, and wait until it is ready.

    Args:
        machine: the machine that will be saved.
        hostname: a guest of this name is renamed after its container; with an empty one, it keeps its name.
        deadline: on `time.monotonic()`.

    Raises:
        Unclonable: the helper cannot run there.
        BootError: the helper did not start.
        BootTimeout: it was not ready in time.
    """
    __tracebackhide__ = True
    supervisor = machine.health.supervisor
    before = supervisor.helpers_ready
    left = machine.commands.run(LEAVE, input=helper(), env={"FORMER": hostname}, sudo=True, check=False)
    if left.exit_code == LACKS:
        raise Unclonable("the guest has no python3, its kernel no virtio_console, or its machine no virtio devices")
    if not left.ok:
        raise BootError(f"the helper that a saved guest needs did not start: {left.stderr.strip()}")
    machine.health.wait_until_reported("helper-ready", lambda: supervisor.helpers_ready > before, deadline)


def wait_until_done(machine: Machine, deadline: float, before: int = 0) -> None:
    """Wait until the helper has done its work.

    Args:
        machine: the machine that was restored.
        deadline: on `time.monotonic()`.
        before: how often a helper had done so before the restore (`Supervisor.helpers_done`).

    Raises:
        BootTimeout: it was not done in time.
    """
    __tracebackhide__ = True
    supervisor = machine.health.supervisor
    machine.health.wait_until_reported("helper-done", lambda: supervisor.helpers_done > before, deadline)


def renew(machine: Machine, host_key: KeyPair) -> None:
    """Replace the guest's machine-id, and its SSH host keys by this one, for new connections.

    What has read the machine-id before keeps the old one until it is restarted: machine-id(5).

    Raises:
        BootError: a command in the guest failed.
    """
    __tracebackhide__ = True
    renewed = machine.commands.run(
        _RENEW, input=host_key.private, env={"PUBLIC": host_key.public}, sudo=True, check=False
    )
    if not renewed.ok:
        raise BootError(f"{machine.name} could not get a new identity: {renewed.stderr.strip()}")


def take_over(machine: Machine, keys: Keys, more: Sequence[str]) -> None:
    """Turn a machine that was restored from a template into another one, with these keys and a new machine-id.

    Args:
        machine: a clone, which has the keys of its template.
        keys: the new ones.
        more: further public keys that may log in.

    Raises:
        BootError: a command in the guest failed.
    """
    __tracebackhide__ = True
    lines = "".join(f"{line}\n" for line in more)
    admit = {"LOGIN": machine.user, "FORMER": machine.keys.login.public, "NEXT": keys.login.public, "MORE": lines}
    renewed = machine.commands.run(
        _RENEW + ADMIT,
        input=keys.host.private,
        env={"PUBLIC": keys.host.public, **admit},
        sudo=True,
        check=False,
    )
    if not renewed.ok:
        why = "its authorized_keys lack ours" if renewed.exit_code == LACKS else renewed.stderr.strip()
        raise BootError(f"{machine.name} could not get new keys: {why}")


def logins_are_the_same(machine: Machine) -> bool:
    """Write the guest's dirty pages to its disk; return whether nothing was changed in /etc since `take_over`."""
    __tracebackhide__ = True
    return machine.commands.run(_CHANGED, sudo=True, check=False).ok


def helper() -> str:
    """Return the source of the helper."""
    return Path(clone_helper.__file__).read_text()
