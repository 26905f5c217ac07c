"""Compose one line for the guest's shell from the arguments of `vm.run`, with everything quoted."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

from pytest_virtainers.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SAY_LEADER = "echo $$ >&2\n"
_LONGEST_NUMBER = 10


def line(
    command: str | Sequence[str],
    *,
    sudo: bool = False,
    user: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
) -> str:
    """Compose the shell line.

    Args:
        command: text is passed to the shell unchanged; a sequence is quoted word by word.
        sudo: run it as root, without asking for a password.
        user: run it as this user instead.
        env: variables to set; names are checked, values quoted.
        cwd: working directory; if it cannot be entered, the command does not run.

    Raises:
        UsageError: a name in `env` cannot name a variable, or the command is empty.
    """
    script = command if isinstance(command, str) else shlex.join(command)
    if not script.strip():
        raise UsageError("the command is empty")
    preamble = [f"cd -- {shlex.quote(cwd)} || exit"] if cwd is not None else []
    for name, value in (env or {}).items():
        if not _VARIABLE.fullmatch(name):
            raise UsageError(f"{name!r} cannot name an environment variable")
        preamble.append(f"export {name}={shlex.quote(value)}")
    script = "\n".join([*preamble, script if isinstance(command, str) else f"exec {script}"])
    if not sudo and user is None:
        return script
    who = [] if user is None else ["-u", user]
    return shlex.join(["sudo", "-n", *who, "--", "sh", "-c", script])


def with_leader(script: str) -> str:
    """Make the shell first write the number of its session to standard error (see `Leader`)."""
    return _SAY_LEADER + script


class Leader:
    """Removes the session's number (see `with_leader`) from the front of standard error, and passes on the rest.

    sshd makes each command the leader of a session (setsid(2)); its number is that of the shell.
    """

    def __init__(self) -> None:
        self.session: int | None = None
        self.pass_on: Callable[[bytes], object] = bytes
        self._start: bytes | None = b""

    def __call__(self, data: bytes) -> None:
        """Read the next piece of standard error."""
        if self._start is None:
            self.pass_on(data)
            return
        self._start += data
        if b"\n" not in self._start and len(self._start) <= _LONGEST_NUMBER:
            return
        number, newline, rest = self._start.partition(b"\n")
        if newline and number.isdigit():
            self.session = int(number)
        else:  # an unknown shell
            rest = self._start
        self._start = None
        self.pass_on(rest)  # even if it is empty: a thread may wait for the number

    def end(self) -> None:
        """Pass on what was too short to be recognized as a number."""
        if self._start:
            self.pass_on(self._start)
        self._start = None


# As root: processes of sudo have other owners. The session's shell is killed, too: it could start the next process.
# pkill's exit code 1, that no process is left, is fine.
KILL_SESSION = """
if command -v pkill >/dev/null; then pkill -KILL -s "$1" || [ $? = 1 ]; else kill -s KILL -- "-$1" || :; fi
"""
# The shell of a session waits for its commands, and sudo passes signals on: neither is signalled. It is no error if a
# process has just ended.
SIGNAL_SESSION = """
for each in $(pgrep -s "$1"); do
    [ "$each" = "$1" ] || [ "$(cat /proc/$each/comm)" = sudo ] || targets="$targets $each"
done
for each in ${targets:-$1}; do
    kill -s "$2" "$each" || [ ! -e "/proc/$each" ] || exit
done
"""
