"""The command `virtainers`: VMs without pytest, guest images, the store, evidence, and checks of this machine.

Exit codes: 0 on success, 1 on failure, 2 for wrong usage, 130 after an interrupt. `run`, `ssh`, `exec` and `resume`
exit with the code of the shell or command in the VM, or 255 if ssh itself failed. SIGTERM (143) and a closed terminal
(129) end a command with the same cleanup as Ctrl-C.
"""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING, NoReturn

import click

from pytest_virtainers.cli import detached, evidence, host, images, run, store
from pytest_virtainers.cli.common import note
from pytest_virtainers.errors import VirtainerError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_FAILED, _INTERRUPTED = 1, 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="pytest-virtainers", message="%(package)s %(version)s")
def virtainers() -> None:
    """Disposable virtual machines in containers: only Docker or Podman is needed.

    \b
    A shell in a new VM, which ends with the shell:
      virtainers run debian-13
    One command in a VM:
      virtainers run --ram 2G -- sh -c 'free -m; uname -r'
    A detached VM, which keeps running:
      virtainers run --detach --name web --package nginx
      virtainers ssh web
      virtainers rm --force web

    Settings come from VIRTAINER_X in the environment, for example VIRTAINER_ENGINE=podman.

    Exit codes: 0, success; 1, failure; 2, wrong usage; 130, interrupted. run, ssh, exec and resume exit with the
    code of the shell or command in the VM, or 255 if ssh itself failed.
    """  # noqa: D301  (click's mark for lines that are not wrapped)


for _module in (run, detached, images, store, evidence, host):
    for _command in _module.COMMANDS:
        virtainers.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    try:
        with _cleanup_on_signals():
            code = virtainers.main(arguments, prog_name="virtainers", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _INTERRUPTED
    except (VirtainerError, OSError) as error:  # a missing file or program
        note(str(error))
        return _FAILED
    return int(code or 0)


@contextlib.contextmanager
def _cleanup_on_signals() -> Iterator[None]:
    """Make SIGTERM and a closed terminal end the block with the same cleanup as Ctrl-C."""

    def end(number: int, _frame: object) -> NoReturn:
        for each in ours:
            signal.signal(each, signal.SIG_IGN)  # the cleanup has begun
        raise SystemExit(128 + number)

    ours = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) is signal.SIG_DFL]  # nohup
    for each in ours:
        signal.signal(each, end)
    try:
        yield
    finally:
        for each in ours:
            signal.signal(each, signal.SIG_DFL)
