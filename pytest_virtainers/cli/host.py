"""Commands for this machine: checks, cleanup, shell completion."""

from __future__ import annotations

from dataclasses import asdict

import click

from pytest_virtainers.cli.common import answer, as_json, settings, show
from pytest_virtainers.terminal import one_line

_FAILED = 1


@click.command
@as_json
def doctor(as_json: bool) -> int:
    """Check this machine: engine, KVM, image tools, memory; print remedies.

    \b
    For example:
      virtainers doctor || echo 'VMs will not start here'
    """  # noqa: D301
    from pytest_virtainers import doctor

    findings = doctor.examine(settings())
    if as_json:
        show([asdict(finding) for finding in findings], as_json=True)
    else:
        for finding in findings:
            answer(str(finding))
    return _FAILED if any(finding.fatal for finding in findings) else 0


@click.command
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
def prune(force: bool) -> None:
    """Remove detached VMs that are switched off, and leftovers of dead processes.

    \b
    For example:
      virtainers prune --force
    """  # noqa: D301
    from pytest_virtainers import detached

    with detached.connected(settings()) as engine:
        off = [each.name for each in detached.list_all(engine) if each.is_off]
        if off and not force:
            click.confirm(f"Remove {one_line(', '.join(off))}?", abort=True, err=True)
        for name in off:
            detached.remove(engine, name)
        for each in [*off, *engine.sweep()]:
            answer(f"removed {each}")


@click.command
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print a script that completes this command in a shell.

    \b
    For example:
      virtainers completion bash >> ~/.bashrc
    """  # noqa: D301
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None  # noqa: S101  (for the type checker: click has these three)
    print(found(ctx.find_root().command, {}, "virtainers", "_VIRTAINERS_COMPLETE").source())


COMMANDS = (doctor, prune, completion)
