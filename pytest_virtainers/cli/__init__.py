"""The command `virtainers`: VMs without pytest, guest images, the store, evidence, and what this machine has.

Exit codes: 0 when it did what was asked, 1 when it failed, 2 for wrong usage, 130 when it was interrupted. `run`,
`ssh`, `exec` and `resume` give that of the shell or command in the VM, 255 when ssh itself failed. SIGTERM (143) and
a closed terminal (129) end a command as Ctrl-C does.
"""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING, NoReturn

import click

from pytest_virtainers.cli import evidence, host, images, machines, store
from pytest_virtainers.cli.common import tell
from pytest_virtainers.errors import VirtainerError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_FAILED, _INTERRUPTED = 1, 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="pytest-virtainers", message="%(package)s %(version)s")
def virtainers() -> None:
    """Disposable virtual machines in containers: only Docker or Podman is needed.

    \b
    A shell in a fresh VM, which ends with it:
      virtainers run debian-13
    One command in a VM:
      virtainers run --ram 2G -- sh -c 'free -m; uname -r'
    A VM that stays:
      virtainers run --detach --name web --package nginx
      virtainers ssh web
      virtainers rm --force web

    Settings come from VIRTAINER_X in the environment, for example VIRTAINER_ENGINE=podman.

    Exit codes: 0, it did what was asked; 1, it failed; 2, wrong usage; 130, interrupted. run, ssh, exec and resume
    give that of the shell or command in the VM, and 255 when ssh itself failed.
    """  # noqa: D301  (click's mark for lines that stay as they are)


for _module in (machines, images, store, evidence, host):
    for _command in _module.COMMANDS:
        virtainers.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give the exit code."""
    try:
        with _ending_in_order():
            code = virtainers.main(arguments, prog_name="virtainers", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _INTERRUPTED
    except (VirtainerError, OSError) as error:  # a file that is not there, a program that is not installed
        tell(str(error))
        return _FAILED
    return int(code or 0)


@contextlib.contextmanager
def _ending_in_order() -> Iterator[None]:
    """Let SIGTERM and a terminal that is closed end the block as Ctrl-C does: what has been started ends first."""

    def end(number: int, _frame: object) -> NoReturn:
        for each in ours:
            signal.signal(each, signal.SIG_IGN)  # once is enough: the clean-up is under way
        raise SystemExit(128 + number)

    ours = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) is signal.SIG_DFL]  # nohup
    for each in ours:
        signal.signal(each, end)
    try:
        yield
    finally:
        for each in ours:
            signal.signal(each, signal.SIG_DFL)
