"""A private Podman service, for hosts where no engine runs; it ends with this process."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from pytest_virtainers.errors import EngineError
from pytest_virtainers.support.forks import disown_in_child

_START_SECONDS = 20.0

# The shell lives as long as the service. Its stdin is a pipe from this process, so a child of the shell that reads it
# notices when this process ends, even by SIGKILL, and stops the service.
_KEEPER = """
folder=$1; shift
exec 3<&0
"$@" </dev/null 3<&- & service=$!
{ read -r _ <&3; kill $service; } & watcher=$!
wait $service
kill $watcher
rm -rf "$folder"
"""


class PodmanService:
    """`podman system service` on a private socket."""

    def __init__(self, podman: str) -> None:
        """Start the service and wait until it accepts connections.

        Raises:
            EngineError: the service did not start; the message has its output.
        """
        folder = Path(tempfile.mkdtemp(prefix="virtainers-podman-"))  # mkdtemp makes it private (0700)
        socket_path = folder / "podman.sock"
        self.url = f"unix://{socket_path}"
        command = [podman, *runtime_options(), "system", "service", "--time=0", self.url]
        with tempfile.TemporaryFile() as log:
            self._keeper = subprocess.Popen(
                ["/bin/sh", "-c", _KEEPER, "sh", str(folder), *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C must not stop it: this process needs it to clean up
            )
            disown_in_child(self)
            deadline = time.monotonic() + _START_SECONDS
            while not answers(socket_path):
                if time.monotonic() > deadline or self._keeper.poll() is not None:
                    log.seek(0)
                    said = log.read().decode(errors="replace").strip()
                    self.stop()
                    raise EngineError(f"{' '.join(command)} did not start: {said or 'no output'}")
                time.sleep(0.05)

    @property
    def pipe(self) -> int:
        """The descriptor that keeps the service alive, also in a process that inherits it."""
        return self._keeper.stdin.fileno() if self._keeper.stdin is not None else -1

    def disown(self) -> None:
        """Leave the service to its owner, a forked child's parent."""
        if self._keeper.stdin is not None:
            self._keeper.stdin.close()
        self._keeper.returncode = 0  # not this process's child

    def stop(self) -> None:
        """End the service and remove its folder."""
        if self._keeper.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._keeper.stdin.close()
        self._keeper.wait(_START_SECONDS)


def answers(path: Path) -> bool:
    """Return whether a process listens; the socket exists a moment earlier."""
    with socket.socket(socket.AF_UNIX) as caller:
        try:
            caller.connect(str(path))
        except OSError:  # or its name is too long, which Podman reports itself
            return False
        return True


def runtime_options() -> list[str]:
    """Choose runc where crun refuses to work: on hosts with cgroup versions 1 and 2."""
    hybrid = Path("/sys/fs/cgroup/unified").is_dir()
    runc = shutil.which("runc")
    return ["--runtime", runc] if hybrid and runc else []
