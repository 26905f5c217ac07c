"""Wait until a guest is ready: SSH login works, cloud-init has finished, logins are open.

The wait ends at once when the container has ended or the guest's kernel has panicked.
"""

from __future__ import annotations

import json
import shlex
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import paramiko
import tenacity

from pytest_virtainers.errors import BootError, BootTimeout, ProvisionTimeout, SSHError
from pytest_virtainers.ssh import client
from pytest_virtainers.support.interruptible import TimedOut, run_interruptible
from pytest_virtainers.vm import provision_limit

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_virtainers.vm.console import Console

_RETRY_SECONDS = 0.25
_LOGIN_SECONDS = 60.0
_MOST_ERROR_BYTES = 4096

# /run/nologin is what pam_nologin looks at. A guest without cloud-init has nothing to wait for.
_SETTLED = f"""{provision_limit.LOOK}
while [ -e /run/nologin ] || {{ [ -d /run/cloud-init ] && [ ! -e /run/cloud-init/result.json ]; }}; do beats; done
if [ -d /run/cloud-init ]; then cat /run/cloud-init/status.json; fi
"""


@dataclass(frozen=True)
class Target:
    """The VM that is waited for: its name, its console, and a check that raises if waiting is pointless."""

    name: str
    console: Console
    check: Callable[[], None]


def wait_for_login(
    target: Target, connect: Callable[[float], client.Connection], timeout: float
) -> client.Connection:
    """Try to log in until it works.

    Args:
        target: the VM.
        connect: logs in within so many seconds.
        timeout: in seconds.

    Raises:
        BootTimeout: no login within `timeout`; the message has the last failure and the last console lines.
        SSHError: the guest shows another host key than the one given to it.
    """
    deadline = time.monotonic() + timeout

    def attempt() -> client.Connection:
        target.check()
        seconds = max(1.0, min(_LOGIN_SECONDS, deadline - time.monotonic()))
        return run_interruptible(
            lambda: connect(seconds),
            check=target.check,
            deadline=time.monotonic() + seconds,
            unwanted=lambda connection: connection.close(),
        )

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(_is_passing),
        stop=tenacity.stop_after_delay(timeout),
        wait=tenacity.wait_fixed(_RETRY_SECONDS),
    )
    try:
        return retrying(attempt)
    except tenacity.RetryError as error:
        last = error.last_attempt.exception()
        raise BootTimeout(
            f"{target.name} did not let us log in over SSH within {timeout:.0f} s. The last try: "
            f"{str(last) or type(last).__name__}. The last lines of its console:\n{target.console.tail()}\n"
            "If it is only slow, give it more time (boot_timeout); a slow machine without KVM needs minutes."
        ) from last
    except paramiko.BadHostKeyException as error:
        raise SSHError(
            f"{target.name} shows another SSH host key than the one that was given to it through cloud-init; "
            f"someone else answers at its address, or the image ignores cloud-init's ssh_keys ({error})"
        ) from error


def _is_passing(error: BaseException) -> bool:
    """Return whether a login may have failed because the boot is still under way."""
    return isinstance(error, (*client.FAILURES, TimedOut)) and not isinstance(error, paramiko.BadHostKeyException)


def wait_for_cloud_init(target: Target, connection: client.Connection, limit: provision_limit.Limit) -> None:
    """Wait until cloud-init has finished and logins are open.

    Raises:
        ProvisionTimeout: not within `limit`.
        BootError: cloud-init reports errors; the message has them.
    """
    output, errors = bytearray(), bytearray()

    def take(data: bytes) -> None:
        limit.look(data)
        errors.extend(data)
        del errors[:-_MOST_ERROR_BYTES]

    def check() -> None:
        target.check()
        if passed := limit.passed():
            raise ProvisionTimeout(
                f"{target.name} let us log in, but cloud-init (packages, run_commands, user_data) has not finished "
                f"{passed}.{limit.story()}\nThe last lines of its console:\n{target.console.tail()}"
            )

    code = connection.execute(
        f"sh -c {shlex.quote(_SETTLED)}",
        stdin=None,
        stdout=output.extend,
        stderr=take,
        deadline=None,
        check=check,
    )
    if code != 0:
        said = errors.rpartition(b"\0")[2].decode(errors="replace").strip()
        raise BootError(
            f"{target.name} let us log in, but cloud-init's state could not be read (exit code {code}): {said}"
        )
    failures = cloud_init_errors(output.decode(errors="replace"))
    if failures:
        raise BootError(
            f"cloud-init in {target.name} reports errors; look at user_data, packages and run_commands:\n"
            + "\n".join(f"  {each}" for each in failures)
            + f"\nThe last lines of its console:\n{target.console.tail()}"
        )


def cloud_init_errors(status: str) -> list[str]:
    """List the errors in cloud-init's `status.json` (empty text: no cloud-init), stage by stage.

    What cloud-init calls recoverable counts as an error when it is more than a warning.
    https://docs.cloud-init.io/en/latest/explanation/failure_states.html
    """
    if not status.strip():
        return []
    failures = []
    for stage, state in json.loads(status).get("v1", {}).items():
        if not isinstance(state, dict):
            continue
        failures += [f"{stage}: {each}" for each in state.get("errors") or []]
        recoverable = state.get("recoverable_errors") or {}
        for level in ("ERROR", "CRITICAL"):
            failures += [f"{stage}: {each}" for each in recoverable.get(level) or []]
    return failures
