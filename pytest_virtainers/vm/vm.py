"""`VM`, the object that tests hold: the documented interface of a virtual machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from pytest_virtainers.vm.access import Access
from pytest_virtainers.vm.disks import Disks
from pytest_virtainers.vm.faults import Faults
from pytest_virtainers.vm.files import Files
from pytest_virtainers.vm.hotplug import Hotplug
from pytest_virtainers.vm.nics import Nics
from pytest_virtainers.vm.power import Power
from pytest_virtainers.vm.screen import Screen
from pytest_virtainers.vm.snapshots import Snapshot, Snapshots
from pytest_virtainers.vm.tunnels import Tunnels
from pytest_virtainers.vm.waits import Waits

if TYPE_CHECKING:
    import re
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from pytest_virtainers.config.spec import Spec
    from pytest_virtainers.vm.console import Console
    from pytest_virtainers.vm.log import CommandLog
    from pytest_virtainers.vm.machine import Machine
    from pytest_virtainers.vm.network import Network
    from pytest_virtainers.vm.process import Process
    from pytest_virtainers.vm.result import Result
    from pytest_virtainers.vm.tunnels import Address

__all__ = ["VM", "Snapshot"]

T = TypeVar("T")
_WAIT_SECONDS = 30.0
_SHUTDOWN_SECONDS = 30.0


class VM:
    """A virtual machine that has booted and accepts commands over SSH.

    Every method raises `VMGone` if the machine has ended or was switched off, `GuestPanic` if its kernel panicked,
    `GuestStalled` if it hangs, and `SSHError` if the SSH connection breaks and cannot be made again.

    Timeouts "with KVM" are ten times as long on a machine without KVM, where VMs are emulated.
    """

    def __init__(self, machine: Machine) -> None:
        """Wrap a machine; the fixtures `vm` and `vm_factory`, and `launch`, do this."""
        self.machine = machine  # not for tests: what launching, evidence and the command line need
        hotplug = Hotplug(machine, self)
        self._files = Files(machine)
        self._waits = Waits(machine)
        self._power = Power(machine, hotplug)
        self._snapshots = Snapshots(machine, hotplug)
        self._tunnels = Tunnels(machine)
        self._disks = Disks(hotplug, self._waits)
        self._nics = Nics(hotplug, machine.qmp)
        self._screen = Screen(machine)
        self._faults = Faults(machine)
        self._access = Access(machine)

    def __repr__(self) -> str:
        return f"<VM {self.name} ({self.spec.image}) at {self.ip}>"

    def __reduce__(self) -> NoReturn:
        """Raise `TypeError`: a VM cannot be pickled."""
        raise TypeError(
            f"{self.name}: a VM's handle cannot be sent to another process. Use a thread, or send "
            "vm.access.ssh_command"
        )

    # Facts

    @property
    def name(self) -> str:
        """The name of the VM, by which other VMs of its networks find it."""
        return self.machine.name

    @property
    def spec(self) -> Spec:
        """What was requested: image, RAM, CPUs and so on."""
        return self.machine.spec

    @property
    def user(self) -> str:
        """The user that commands run as by default."""
        return self.machine.user

    @property
    def ip(self) -> str:
        """The IPv4 address at which other VMs of the network reach the VM."""
        return self.machine.ip

    @property
    def ip6(self) -> str:
        """The IPv6 address at which other VMs of the network reach the VM; empty on a network without IPv6."""
        return self.machine.ip6

    @property
    def network(self) -> Network:
        """The network of the first card, with faults between VMs and captures."""
        return self.machine.network

    @property
    def networks(self) -> tuple[Network, ...]:
        """All networks of the VM: that of the first card, then those of added cards."""
        return (self.network, *(nic.network for nic in self._nics.values() if nic.network is not None))

    @property
    def console(self) -> Console:
        """The serial console: `text` since the VM was booted or cloned, `send` and `expect`."""
        return self.machine.console

    @property
    def log(self) -> CommandLog:
        """The commands and transfers of the VM: `log.text` has a line for each."""
        return self.machine.log

    def scaled(self, seconds: float) -> float:
        """Return how long something may take here that takes `seconds` with KVM: ten times as long without."""
        return self.machine.scaled(seconds)

    # Groups

    @property
    def disks(self) -> Disks:
        """Disks that are added and removed while the VM runs."""
        return self._disks

    @property
    def nics(self) -> Nics:
        """Network cards that are added and removed while the VM runs: `vm.nics["lab"].ip`."""
        return self._nics

    @property
    def screen(self) -> Screen:
        """The screen, keyboard and pointer: screenshots, keys, VNC."""
        return self._screen

    @property
    def faults(self) -> Faults:
        """Faults inside the guest: a full or slow disk, a wrong clock, a blocked network."""
        return self._faults

    @property
    def access(self) -> Access:
        """Access for other tools: OpenSSH, testinfra, Ansible."""
        return self._access

    # Commands

    def run(
        self,
        command: str | Sequence[str],
        *,
        check: bool = True,
        input: str | bytes | None = None,  # noqa: A002  (as subprocess.run calls it)
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        sudo: bool = False,
        user: str | None = None,
    ) -> Result:
        """Run a command in the guest and wait for its end.

        Args:
            command: text for the guest's shell, or a sequence of words, which are quoted.
            check: raise if the exit code is not 0.
            input: the command's standard input (text as UTF-8); empty by default.
            timeout: seconds; `None`: no limit. It holds even if the guest no longer answers. After it, all processes
                of the command's session are killed.
            env: environment variables of the command.
            cwd: its working directory.
            sudo: run it as root.
            user: run it as this user.

        Returns:
            Exit code, output and duration.

        Raises:
            CommandFailed: the exit code is not 0, with `check`.
            CommandTimeout: it still ran after `timeout` seconds.
            OutputTooLarge: it printed more than 1 GiB on a stream.

        Example:
            `assert vm.run("systemctl is-active nginx", check=False).stdout.strip() == "active"`
        """
        __tracebackhide__ = True
        return self.machine.commands.run(
            command, check=check, input=input, timeout=timeout, env=env, cwd=cwd, sudo=sudo, user=user
        )

    def popen(
        self,
        command: str | Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        sudo: bool = False,
        user: str | None = None,
    ) -> Process:
        """Start a command in the guest without waiting for it; it ends with the VM at the latest.

        Args:
            command: text for the guest's shell, or a sequence of words, which are quoted.
            env: environment variables of the command.
            cwd: its working directory.
            sudo: run it as root.
            user: run it as this user.

        Example:
            `with vm.popen("tail -f /var/log/syslog") as log: line = next(log.lines(timeout=10))`
        """
        __tracebackhide__ = True
        return self.machine.commands.popen(command, env=env, cwd=cwd, sudo=sudo, user=user)

    # Files

    def put(self, source: str | Path, dest: str, *, owner: str | None = None, timeout: float | None = None) -> str:
        """Copy a local file or tree into the guest, as `cp -a SOURCE DEST` would; modes, links and holes are kept.

        Args:
            source: local path.
            dest: path in the guest; missing parent folders are created.
            owner: `user` or `user:group`; by default the owner of the folder that it is copied into.
            timeout: seconds; `None`: no limit.

        Returns:
            The path in the guest of what was written.

        Raises:
            FileNotFoundError: `source` does not exist.
            TransferError: the copy failed; what was at `dest` before is unchanged.
        """
        __tracebackhide__ = True
        return self._files.put(source, dest, owner=owner, timeout=timeout)

    def get(self, source: str, dest: str | Path, *, special: bool = False, timeout: float | None = None) -> Path:
        """Copy a file or tree out of the guest, as `cp -a SOURCE DEST` would; modes, links and holes are kept.

        The guest is not trusted. FIFOs, devices and symbolic links that lead out of the tree are skipped, which the
        command log and the terminal show; setuid and setgid bits are dropped. Existing folders are merged. Symbolic
        links at or below `dest` are replaced, never followed.

        Args:
            source: path in the guest; a symbolic link is refused.
            dest: local path; missing parent folders are created.
            special: copy special files (devices only as root) and all links, and keep setuid and setgid bits.
            timeout: seconds; `None`: no limit.

        Returns:
            The local path of what was written.

        Raises:
            FileNotFoundError: `source` does not exist in the guest.
            TransferError: the copy failed.
        """
        __tracebackhide__ = True
        return self._files.get(source, dest, special=special, timeout=timeout)

    def glob(self, pattern: str) -> list[str]:
        """List the paths in the guest that match a pattern of its shell, sorted, as root.

        Args:
            pattern: an absolute one, such as `/var/log/*.log`.

        Raises:
            UsageError: the pattern is not absolute, or has blanks or quotes, which a pattern cannot hold.
        """
        __tracebackhide__ = True
        return self._files.glob(pattern)

    def read_text(self, path: str, *, timeout: float | None = None) -> str:
        """Return the content of a file of the guest, read as root.

        Args:
            path: in the guest.
            timeout: seconds; `None`: no limit.

        Returns:
            The content as UTF-8; other bytes are kept as surrogate escapes (PEP 383).

        Raises:
            FileNotFoundError: there is no such file.
            TransferError: it could not be read.
        """
        __tracebackhide__ = True
        return self._files.read_text(path, timeout=timeout)

    def write_text(
        self,
        path: str,
        text: str,
        *,
        mode: int | None = None,
        owner: str | None = None,
        timeout: float | None = None,
    ) -> None:
        """Write a file of the guest as root, in one step: readers see the old or the new content.

        Args:
            path: in the guest; missing parent folders are created, a symbolic link is followed.
            text: written as UTF-8.
            mode: permission bits; by default those of the existing file, 0644 for a new one.
            owner: `user` or `user:group`; by default the owner of the existing file, or else of its folder.
            timeout: seconds; `None`: no limit.

        Raises:
            TransferError: it could not be written; the old content is unchanged.
        """
        __tracebackhide__ = True
        self._files.write_text(path, text, mode=mode, owner=owner, timeout=timeout)

    # Waiting

    def wait_for(self, condition: Callable[[], T], *, timeout: float = _WAIT_SECONDS, what: str = "") -> T:
        """Call `condition` until its result is true; return that result.

        Args:
            condition: a function without arguments; its exceptions end the wait.
            timeout: seconds with KVM; ten times as many without.
            what: its name in the error message; by default the function's name.

        Raises:
            WaitTimeout: the time passed. It is an `AssertionError`.

        Example:
            `vm.wait_for(lambda: "ready" in vm.read_text("/run/app/state"), what="the app")`
        """
        __tracebackhide__ = True
        return self._waits.wait_for(condition, timeout=timeout, what=what)

    def wait_until_succeeds(
        self, command: str | Sequence[str], *, timeout: float = _WAIT_SECONDS, **arguments: Any
    ) -> Result:
        """Run a command until its exit code is 0; return its last result.

        Args:
            command: as for `run`.
            timeout: seconds with KVM; ten times as many without.
            arguments: other arguments of `run`, except `check`.

        Raises:
            WaitTimeout: the time passed; the message has the last output.
        """
        __tracebackhide__ = True
        return self._waits.wait_until("success", command, timeout=timeout, arguments=arguments)

    def wait_until_fails(
        self, command: str | Sequence[str], *, timeout: float = _WAIT_SECONDS, **arguments: Any
    ) -> Result:
        """Run a command until its exit code is not 0; return its last result.

        Args:
            command: as for `run`.
            timeout: seconds with KVM; ten times as many without.
            arguments: other arguments of `run`, except `check`.

        Raises:
            WaitTimeout: the time passed; the message has the last output.
        """
        __tracebackhide__ = True
        return self._waits.wait_until("failure", command, timeout=timeout, arguments=arguments)

    def wait_for_unit(self, unit: str, *, timeout: float = _WAIT_SECONDS) -> None:
        """Wait until a systemd unit is active.

        Args:
            unit: its name, such as `nginx`.
            timeout: seconds with KVM; ten times as many without.

        Raises:
            UnitFailed: the unit failed; the message has the end of its journal. This is raised at once.
            WaitTimeout: the time passed.
        """
        __tracebackhide__ = True
        self._waits.wait_for_unit(unit, timeout=timeout)

    def wait_for_port(self, port: int, *, host: str = "localhost", timeout: float = _WAIT_SECONDS) -> None:
        """Wait until a TCP port accepts connections from inside the guest.

        Args:
            port: its number.
            host: as the guest knows it.
            timeout: seconds with KVM; ten times as many without.

        Raises:
            WaitTimeout: the time passed.
            SSHError: the guest's sshd does not try, for instance because it forbids forwarding.
        """
        __tracebackhide__ = True
        self._waits.wait_for_port(port, host=host, timeout=timeout, is_open=True)

    def wait_for_closed_port(self, port: int, *, host: str = "localhost", timeout: float = _WAIT_SECONDS) -> None:
        """Wait until a TCP port accepts no connections from inside the guest.

        Args:
            port: its number.
            host: as the guest knows it.
            timeout: seconds with KVM; ten times as many without.

        Raises:
            WaitTimeout: the time passed.
            SSHError: the guest's sshd does not try, for instance because it forbids forwarding.
        """
        __tracebackhide__ = True
        self._waits.wait_for_port(port, host=host, timeout=timeout, is_open=False)

    def wait_for_file(self, path: str, *, timeout: float = _WAIT_SECONDS) -> None:
        """Wait until a file or folder exists; a broken symbolic link does not count.

        Args:
            path: in the guest.
            timeout: seconds with KVM; ten times as many without.

        Raises:
            WaitTimeout: the time passed.
        """
        __tracebackhide__ = True
        self._waits.wait_for_file(path, timeout=timeout)

    def wait_for_console(self, pattern: str, *, timeout: float = _WAIT_SECONDS) -> re.Match[str]:
        """Wait until the serial console shows a regular expression, from its first line on; return the match.

        Args:
            pattern: `^` and `$` match at the ends of lines.
            timeout: seconds with KVM; ten times as many without.

        Raises:
            WaitTimeout: the time passed; the message has the last lines of the console.
        """
        __tracebackhide__ = True
        return self._waits.wait_for_console(pattern, timeout=timeout)

    def wait_for_cloud_init(self, *, timeout: float = _WAIT_SECONDS) -> None:
        """Wait until cloud-init has finished, for instance after a reboot with other data.

        Args:
            timeout: seconds with KVM; ten times as many without.

        Raises:
            BootTimeout: the time passed.
            BootError: cloud-init reports errors; the message has them.
        """
        __tracebackhide__ = True
        self._waits.wait_for_cloud_init(timeout=timeout)

    # Power

    def reboot(self, *, timeout: float | None = None) -> None:
        """Reboot the guest and wait until it is ready again, which its new boot id proves.

        Args:
            timeout: seconds for all of it; by default the marker's `boot_timeout`.

        Raises:
            BootTimeout: it was not ready in time, or never went down.
        """
        __tracebackhide__ = True
        self._power.reboot(timeout=timeout)

    def reset(self, *, timeout: float | None = None) -> None:
        """Press the reset button and wait until the guest is ready again; what it has not written to disk is lost.

        Args:
            timeout: seconds; by default the marker's `boot_timeout`.

        Raises:
            BootTimeout: it was not ready in time.
        """
        __tracebackhide__ = True
        self._power.reset(timeout=timeout)

    def shutdown(self, *, timeout: float = _SHUTDOWN_SECONDS) -> None:
        """Press the power button and wait until the guest has switched itself off; `start` switches it on again.

        Args:
            timeout: seconds with KVM; ten times as many without.

        Raises:
            BootTimeout: it did not switch itself off in time.
        """
        __tracebackhide__ = True
        self._power.shutdown(timeout=timeout)

    def crash(self) -> None:
        """Cut the power; what the guest has not written to disk is lost. `start` switches it on again."""
        __tracebackhide__ = True
        self._power.crash()

    def start(self, *, timeout: float | None = None) -> None:
        """Switch on a VM that was shut down, has crashed or switched itself off, and wait until it is ready.

        Args:
            timeout: seconds; by default the marker's `boot_timeout`.

        Raises:
            BootTimeout: it was not ready in time.
            VMGone: its QEMU has ended, and nothing can be switched on.
        """
        __tracebackhide__ = True
        self._power.start(timeout=timeout)

    def pause(self) -> None:
        """Pause the VM: its processors and its clock stop until `resume`."""
        __tracebackhide__ = True
        self._power.pause()

    def resume(self) -> None:
        """Continue a paused VM; its clock is behind by the time of the pause."""
        __tracebackhide__ = True
        self._power.resume()

    def qmp(self, command: str, **arguments: Any) -> Any:
        """Send one command to QEMU and return its result.

        Args:
            command: see https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html.
            arguments: those of the command; names with a `-` are passed as a dict: `**{"node-name": "disk"}`.

        Raises:
            VirtainerError: QEMU refuses; the message has its words.
            VMGone: QEMU has ended, or ended before it answered, as after `quit`.

        Example:
            `vm.qmp("query-status")["status"]`
        """
        __tracebackhide__ = True
        return self.machine.qmp.execute(command, **arguments)

    # Snapshots

    def snapshot(self, name: str | None = None) -> Snapshot:
        """Save memory and disk as they are now, for `restore`; the guest stops for that time.

        Args:
            name: letters, digits, `-` and `_`; by default the first free one of s1, s2, ….

        Raises:
            UsageError: the name has other characters, or is taken.
            SnapshotError: the snapshot failed; the message has the reason.

        Example:
            `clean = vm.snapshot(); vm.run("rm -rf /etc/nginx", sudo=True); vm.restore(clean)`
        """
        __tracebackhide__ = True
        return self._snapshots.make(name)

    def snapshots(self) -> list[str]:
        """List the names of the VM's snapshots, the newest last."""
        __tracebackhide__ = True
        return self._snapshots.names()

    def restore(self, snapshot: Snapshot | str) -> None:
        """Restore memory and disk of a snapshot, with the clock set to the present.

        Disks and network cards that were added since are removed. Commands and forwarded connections end. SSH
        continues in the session that was open then, if that is possible; else a new login is made.

        Args:
            snapshot: what `snapshot` returned, or its name.

        Raises:
            UsageError: it is a snapshot of another VM, or there is no such snapshot.
            SnapshotError: it cannot be restored; the message has the reason.
            BootError: the guest does not answer afterwards.
        """
        __tracebackhide__ = True
        self._snapshots.restore(snapshot)

    def delete_snapshot(self, snapshot: Snapshot | str) -> None:
        """Delete a snapshot and free its space.

        Args:
            snapshot: what `snapshot` returned, or its name.

        Raises:
            UsageError: it is a snapshot of another VM, or there is no such snapshot.
            SnapshotError: QEMU refuses; the message has the reason.
        """
        __tracebackhide__ = True
        self._snapshots.delete(snapshot)

    # Tunnels

    def forward(self, port: int, *, host: str = "localhost") -> AbstractContextManager[Address]:
        """Open a local address that leads to a TCP port of the guest, for the duration of the block.

        Args:
            port: in the guest.
            host: as the guest knows it; for instance another machine that only the guest reaches.

        Returns:
            A context manager for the address, which is a URL with `host` and `port`.

        Example:
            `with vm.forward(80) as url: assert requests.get(url).ok`
        """
        return self._tunnels.forward(port, host=host)

    def reverse(self, port: int, *, guest_port: int | None = None) -> AbstractContextManager[int]:
        """Open a port on the guest's localhost that leads to one of this machine, for the duration of the block.

        Args:
            port: on this machine's 127.0.0.1.
            guest_port: in the guest; by default the same number, 0 for any free one.

        Returns:
            A context manager for the port in the guest.

        Raises:
            SSHError: the guest's sshd refuses, for instance because the port is in use.
        """
        return self._tunnels.reverse(port, guest_port=guest_port)
