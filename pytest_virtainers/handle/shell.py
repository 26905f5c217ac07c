"""Turn what `vm.run` was given into one line for the guest's shell, with everything quoted."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def line(
    command: str | Sequence[str],
    *,
    sudo: bool = False,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
) -> str:
    """Compose the shell line.

    Args:
        command: text is for the shell as it is; a sequence is quoted word by word.
        sudo: run it as root, without asking for a password.
        env: variables to set; names are checked, values quoted.
        cwd: folder to run in; when it cannot be entered, the command does not run.

    Raises:
        ValueError: a name in `env` cannot name a variable, or the command is empty.
    """
    script = command if isinstance(command, str) else shlex.join(command)
    if not script.strip():
        raise ValueError("the command is empty")
    preamble = [f"cd -- {shlex.quote(cwd)} || exit"] if cwd is not None else []
    for name, value in (env or {}).items():
        if not _VARIABLE.fullmatch(name):
            raise ValueError(f"{name!r} cannot name an environment variable")
        preamble.append(f"export {name}={shlex.quote(value)}")
    script = "\n".join([*preamble, script])
    return f"sudo -n -- sh -c {shlex.quote(script)}" if sudo else script
