"""Identity of restored guests: clock, random numbers, hostname, machine-id and keys.

A guest that is saved, as a template or in a snapshot, has a helper in it (`clone_helper.py`). When the guest resumes,
the helper sets clock, random numbers and, in a clone, the hostname, together with the supervisor
(`images/runtime/virtainer/clone_agent.py`); then it waits for the next time.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pytest_virtainers.errors import BootError, Unclonable
from pytest_virtainers.support.runtime import protocol
from pytest_virtainers.vm import clone_helper

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_virtainers.ssh.keys import KeyPair, Keys
    from pytest_virtainers.vm.commands import Commands

_PATH = "/run/virtainer-clone.py"
_LACKS = 90
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
_ADMIT = f"""
eval "file=~$LOGIN/.ssh/authorized_keys"
lines=
while IFS= read -r line || [ "$line" ]; do
    case $line in *"$FORMER"*) line="${{line%%"$FORMER"*}}$NEXT${{line#*"$FORMER"}}" found=1 ;; esac
    lines="$lines$line
"
done <"$file"
[ "$found" ] || exit {_LACKS}
printf %s "$lines$MORE" >"$file"
"""
# The helper leaves the cgroup of the login, which would keep the session open. It joins PID 1's, because the end of a
# unit would keep systemd, journald, D-Bus and logind busy when a clone's first login needs the CPU.
LEAVE = f"""
command -v python3 >/dev/null && {{ [ -d /sys/class/virtio-ports ] || modprobe virtio_console; }} || exit {_LACKS}
tries=0
until grep -qsx {protocol.CLONE_PORT} /sys/class/virtio-ports/*/name; do
    tries=$((tries + 1))
    [ $tries -lt 50 ] || exit {_LACKS}
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


def leave_helper(vm: Commands, hostname: str) -> None:
    """Start the helper in the guest.

    Args:
        vm: the guest.
        hostname: the name that a clone replaces with its own; with an empty one, the guest keeps its name.

    Raises:
        Unclonable: the guest cannot run the helper.
        BootError: the helper did not start.
    """
    __tracebackhide__ = True
    left = vm.run(LEAVE, input=helper(), env={"FORMER": hostname}, sudo=True, check=False)
    if left.exit_code == _LACKS:
        raise Unclonable("the guest has no python3, its kernel no virtio_console, or its machine no virtio devices")
    if not left.ok:
        raise BootError(f"the helper that a saved guest needs did not start: {left.stderr.strip()}")


def renew(vm: Commands, host_key: KeyPair) -> None:
    """Replace the guest's machine-id, and its SSH host keys by this one, which new connections use.

    Programs that have read the machine-id keep the old one until they are restarted: machine-id(5).

    Raises:
        BootError: a command in the guest failed.
    """
    __tracebackhide__ = True
    renewed = vm.run(_RENEW, input=host_key.private, env={"PUBLIC": host_key.public}, sudo=True, check=False)
    if not renewed.ok:
        raise BootError(f"{vm.name}: its identity could not be renewed: {renewed.stderr.strip()}")


def take_over(vm: Commands, keys: Keys, more: Sequence[str]) -> None:
    """Turn a VM that was restored from a template into another machine, with new keys and a new machine-id.

    Args:
        vm: the VM, which has the keys of the template.
        keys: the new keys.
        more: further public keys that may log in.

    Raises:
        BootError: a command in the guest failed.
    """
    __tracebackhide__ = True
    lines = "".join(f"{line}\n" for line in more)
    admit = {"LOGIN": vm.user, "FORMER": vm.keys.login.public, "NEXT": keys.login.public, "MORE": lines}
    renewed = vm.run(
        _RENEW + _ADMIT,
        input=keys.host.private,
        env={"PUBLIC": keys.host.public, **admit},
        sudo=True,
        check=False,
    )
    if not renewed.ok:
        why = "its authorized_keys lack the template's key" if renewed.exit_code == _LACKS else renewed.stderr.strip()
        raise BootError(f"{vm.name}: its keys could not be replaced: {why}")


def helper() -> str:
    """Return the source of the helper."""
    return Path(clone_helper.__file__).read_text()
