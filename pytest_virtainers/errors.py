"""The exceptions of this package.

`VirtainerError` and its children are about everything around the test: arguments, engine, images, the boot, the
connection. The others are assertions about the system under test, and so `AssertionError`s::

    VirtainerError
    ├── UsageError (a ValueError)  a call or command that cannot be carried out as it is
    ├── SpecError                  a setting, marker argument or document that cannot be used
    ├── EngineNotFound             no container engine answered
    ├── EngineError                the container engine refused or failed
    ├── ImageError                 a guest image or the runtime image
    ├── StoreError                 the store of guest images and templates
    ├── BudgetError                no memory for one more VM
    ├── TemplateError              a template could not be made
    ├── BootError                  the guest did not become ready
    │   ├── BootTimeout            … in time
    │   │   └── ProvisionTimeout   … what is set up in it, in time
    │   ├── GuestPanic             its kernel panicked
    │   └── GuestStalled           its kernel hangs
    ├── VMGone                     the VM ended
    │   ├── QEMUCrashed            … because QEMU itself failed
    │   └── BadTemplate            … because its template does not restore (internal)
    ├── DiskFull                   the VM is paused, as its disk could not be written
    ├── SSHError                   the guest cannot be reached over SSH
    ├── RootCommandError           a command of this package failed in the guest
    │   └── RootCommandTimeout     … did not end in time
    ├── OutputTooLarge             a command printed more than is kept
    ├── TransferError              a file or tree was not copied
    ├── SnapshotError              a snapshot was not taken, restored or deleted
    └── Unclonable                 the guest lacks what a template needs (internal)

    AssertionError
    ├── CommandFailed              a command ended with an exit code other than 0
    │   └── CommandTimeout         … was still running when its time was up
    ├── WaitTimeout                a condition was not met in time
    └── UnitFailed                 a systemd unit failed

Each message names the thing, the fact and the remedy. It may quote a guest, an image or an engine: `str` returns it
with everything escaped that could control a terminal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_virtainers.terminal import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_virtainers.vm.result import Result


class _Message(Exception):
    def __str__(self) -> str:
        return printable(super().__str__())


class VirtainerError(_Message):
    """The base of all errors that are not about the system under test.

    Raised itself where no subclass fits, as for a VM that a forked child uses. The message says what to do.
    """


class UsageError(VirtainerError, ValueError):
    """A call or command that cannot be carried out as it is: a wrong value, an unknown name, a VM in another state.

    Raised before anything is changed. Correct the call; the message says what is expected.
    """


class SpecError(VirtainerError):
    """A setting, a marker argument, a line of `virtainers.toml` or a user-data document that cannot be used.

    Raised before a VM is started, most of them when tests are collected. Correct the value; the message names its
    source and what is allowed.
    """


class EngineNotFound(VirtainerError):
    """No container engine answered.

    Raised by the first VM of a process. Start Docker or Podman, or set `engine` to its address;
    `virtainers doctor` shows what was tried.
    """


class EngineError(VirtainerError):
    """The container engine refused a request or failed.

    Raised by all that talks to the engine. The message quotes the engine's message.
    """


class ImageError(VirtainerError):
    """A guest image or the runtime image cannot be found, downloaded, built or used.

    Raised by the first VM of an image, and by each further one of the run without another try. The message names the
    image and the cause.
    """


class StoreError(VirtainerError):
    """The store of guest images and templates cannot be read or written, or a file in it is damaged.

    Raised by whatever uses the store. Make room on its disk, choose another one with the setting `store`, or check it
    with `virtainers store verify`.
    """


class BudgetError(VirtainerError):
    """There is no memory for one more VM.

    Raised by a launch when no VM of another process ends in time, or at once when only this process has VMs. End VMs
    earlier, request less memory, run fewer workers, or raise `max_ram`.
    """


class TemplateError(VirtainerError):
    """A template could not be made: it was not saved, or an earlier test of the run has failed to make it.

    Raised by launches that need it. The message has the first failure; `template=False` boots the VM instead.
    """


class BootError(VirtainerError):
    """The guest did not become ready: cloud-init reports errors, or a child of this class says more.

    Raised by launches, `reboot`, `reset` and `start`. The message has the end of the console or of cloud-init's log.
    """


class BootTimeout(BootError):
    """The guest did not let us log in in time.

    Raised as `BootError` is. Look at the console in the message; raise `boot_timeout` if the guest is only slow.
    """


class ProvisionTimeout(BootTimeout):
    """The guest lets us log in, but what is set up in it did not finish in time.

    Raised while cloud-init or `prepare` runs. The message has what ran last; raise `provision_timeout` if it is slow.
    """


class GuestPanic(BootError):
    """The guest's kernel panicked.

    Raised by whatever uses the VM from then on. The message has the end of the console.
    """


class GuestStalled(BootError):
    """The guest's kernel hangs, or the guest does not answer while a command runs.

    Raised by whatever waits for the guest. A VM whose kernel hangs in a boot is booted, or reset, once more first.
    """


class VMGone(VirtainerError):
    """The VM ended: its container or QEMU exited, or the guest switched itself off.

    Raised by whatever uses the VM from then on. The message has the reason and the end of the console.
    """


class QEMUCrashed(VMGone):
    """QEMU itself failed, whatever the guest did: an assertion, or a wild pointer.

    Raised as `VMGone` is. A VM whose QEMU crashes while it boots is booted once more first.
    """


class BadTemplate(VMGone):
    """A template does not restore on this host.

    Handled by the launcher, which makes the template again; a test sees it only if the new one fails, too.
    """


class DiskFull(VirtainerError):
    """QEMU could not write the VM's disk and has paused the VM, usually because the engine's disk is full.

    Raised by whatever uses the VM from then on. Free space on the engine's disk, or let the VM write less.
    """


class SSHError(VirtainerError):
    """The guest cannot be reached over SSH, or the connection broke.

    Raised by whatever runs in the guest. The message says what still answers, and has the end of the console.
    """


class RootCommandError(VirtainerError):
    """A command that this package runs as root in the guest failed.

    Raised by methods that change the guest: network cards, faults, signals. The message has the command's output.
    """


class RootCommandTimeout(RootCommandError):
    """A command that this package runs as root in the guest did not end in time.

    Raised as its parent is. Raise `timeout` if the guest is only slow.
    """


class OutputTooLarge(VirtainerError):
    """A command printed more than is kept of it.

    Raised by `run` and `popen`. Let the command write into a file of the guest, and copy that with `get`.
    """


class TransferError(VirtainerError):
    """A file or tree could not be copied to or from the guest.

    Raised by `put`, `get`, `read_text` and `write_text`. What was at the destination before is untouched.
    """


class SnapshotError(VirtainerError):
    """A snapshot could not be taken, restored or deleted.

    Raised by these methods of a VM. The message has the reason, or QEMU's message.
    """


class Unclonable(VirtainerError):
    """The guest lacks what a template needs.

    Handled by the launcher, which boots such VMs; a test never sees it.
    """


class CommandFailed(_Message, AssertionError):
    """A command ended with an exit code other than 0.

    Raised by `run`, unless `check=False`.

    Attributes:
        result: the whole `Result`.
        vm_name: name of the VM.
        kernel_said: reports of the guest's kernel, since the command started, of processes that it killed because
            memory ran out.
    """

    def __init__(self, result: Result, vm_name: str, kernel_said: Sequence[str] = ()) -> None:
        self.result = result
        self.vm_name = vm_name
        self.kernel_said = kernel_said
        kernel = "".join(f"\n--- the guest's kernel\n{each}" for each in kernel_said)
        super().__init__(f"{self.headline()}{kernel}\n{result.streams()}")

    def headline(self) -> str:
        """Return the first line of the message."""
        return f"{self.result.command!r} on {self.vm_name} ended with exit code {self.result.exit_code}"


class CommandTimeout(CommandFailed):
    """A command was still running when its time was up.

    Raised by `run` with `timeout`, even if `check=False`. `result` has what it printed until then.
    """

    def headline(self) -> str:
        """Return the first line of the message."""
        return f"{self.result.command!r} on {self.vm_name} was still running after {self.result.duration:.1f} s"


class WaitTimeout(_Message, AssertionError):
    """A condition was not met in time.

    Raised by the `wait_…` methods. The message says what was waited for, for how long, and what was seen last.
    """


class UnitFailed(_Message, AssertionError):
    """A systemd unit that was waited for has failed.

    Raised by `wait_for_unit`, without waiting for its timeout. The message has the end of the unit's journal.
    """
