"""What can go wrong, in two families.

`VirtainerError` and its children are trouble with the machinery: the engine, an image, the guest's boot, the
connection. `CommandFailed`, `WaitTimeout` and `UnitFailed` are assertions about the system under test, and so
`AssertionError`s.
Each message says what was tried, what was seen, and what to do next. It may quote a guest, an image or an engine:
`str` gives it with all that could control a terminal escaped.
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
    """Trouble with the machinery, never with the system under test."""


class SpecError(VirtainerError):
    """A setting, a marker argument or a user-data document that cannot be used."""


class EngineNotFound(VirtainerError):
    """No container engine answered."""


class EngineError(VirtainerError):
    """The container engine refused or failed."""


class ImageError(VirtainerError):
    """A guest image or the runtime image cannot be had, built or used."""


class StoreError(VirtainerError):
    """The store of guest images cannot be read or written."""


class BudgetError(VirtainerError):
    """The VMs of this machine take all the memory that they may."""


class BootError(VirtainerError):
    """The guest did not get ready."""


class BootTimeout(BootError):
    """The guest was not ready when its time was up."""


class ProvisionTimeout(BootTimeout):
    """The guest let us log in, but what was to be set up in it did not finish in its time."""


class GuestPanic(BootError):
    """The guest's kernel panicked."""


class GuestStalled(BootError):
    """The guest's kernel hung while it booted."""


class VMGone(VirtainerError):
    """The virtainer ended under our hands."""


class QEMUCrashed(VMGone):
    """QEMU itself has failed, whatever the guest did: one of its assertions, or a wild pointer."""


class BadTemplate(VMGone):
    """A saved machine does not restore here; it is made anew. Never seen by a test, unless the new one fails, too."""


class TemplateError(VirtainerError):
    """A template could not be made, as an earlier test of the run has found out; the message has that failure."""


class SSHError(VirtainerError):
    """The guest could not be reached over SSH."""


class Unclonable(VirtainerError):
    """A guest lacks what a template needs; its VMs are booted instead. Never seen by a test."""


class TransferError(VirtainerError):
    """A file or tree could not be copied to or from the guest."""


class CommandFailed(_Message, AssertionError):
    """A command ended with an exit code other than 0.

    `result` is the whole `Result`; `vm_name` names the machine; `kernel_said` are its kernel's reports, since the
    command was started, of processes that it has killed for lack of memory.
    """

    def __init__(self, result: Result, vm_name: str, kernel_said: Sequence[str] = ()) -> None:
        self.result = result
        self.vm_name = vm_name
        self.kernel_said = kernel_said
        kernel = "".join(f"\n--- the guest's kernel\n{each}" for each in kernel_said)
        super().__init__(f"{self.headline()}{kernel}\n{result.streams()}")

    def headline(self) -> str:
        """Say in one line what happened."""
        return f"{self.result.command!r} on {self.vm_name} ended with exit code {self.result.exit_code}"


class CommandTimeout(CommandFailed):
    """A command was still running when its time was up; `result` holds what it had printed."""

    def headline(self) -> str:
        """Say in one line what happened."""
        return f"{self.result.command!r} on {self.vm_name} was still running after {self.result.duration:.1f} s"


class WaitTimeout(_Message, AssertionError):
    """What was waited for has not come; the message says what, for how long, and what was seen last."""


class UnitFailed(_Message, AssertionError):
    """A systemd unit that was waited for has failed; the message has the end of its journal."""
