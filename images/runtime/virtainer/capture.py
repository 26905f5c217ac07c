"""The command `capture`: the frames on one network of this machine, as pcap on standard output.

    docker exec -i CONTAINER capture MAC >file

MAC is that of the container's interface on the network. The command writes `listening` to stderr when it listens, and
ends when its standard input does, as an exec would outlive its caller.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys

from virtainer import interfaces

_USAGE = "usage: capture MAC"
_END_SECONDS = 5.0


def tcpdump(link: str) -> list[str]:
    """Return the command that writes frames to its standard output, each at once."""
    # As root, which has no capabilities here, but can end it: without CAP_KILL it could not end another user's
    # process.
    return ["tcpdump", "-i", link, "-n", "-U", "--immediate-mode", "-Z", "root", "-w", "-"]


def record(link: str, stdin: int = 0) -> int:
    """Run tcpdump until it ends, `stdin` does, or a signal comes; return an exit code."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writer)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    tool = subprocess.Popen(tcpdump(link), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    assert tool.stderr  # noqa: S101  (for the type checker: it is a pipe)
    ended, words = _watch(tool.stderr.fileno(), (stdin, reader))
    if ended:
        tool.terminate()  # it writes what it has
    with contextlib.suppress(subprocess.TimeoutExpired):
        tool.wait(_END_SECONDS)
    if tool.poll() is None:
        tool.kill()  # it cannot write to a reader that does not read
        return 0
    if ended or tool.returncode == 0:
        return 0
    print(f"capture: {words or 'tcpdump ended'}", file=sys.stderr)
    return 1


def _watch(stderr: int, ends: tuple[int, ...]) -> tuple[bool, str]:
    """Report that it listens; return whether one of `ends` came, and its last line of output."""
    said = b""
    listens = False
    with selectors.DefaultSelector() as selector:
        for fd in (stderr, *ends):
            with contextlib.suppress(PermissionError):  # an ordinary file: it has no end to wait for
                selector.register(fd, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                data = _read(key.fd)
                if key.fd == stderr:
                    said += data
                    if not listens and b"listening on" in said:
                        listens = True
                        print("listening", file=sys.stderr, flush=True)
                    if not data:
                        return False, (said.decode(errors="replace").splitlines() or [""])[-1]
                elif not data or key.fd != ends[0]:
                    return True, ""


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 4096)
    except OSError:  # a terminal that hangs up
        return b""


def main(arguments: list[str]) -> int:
    """Run the command: exit code 1 when it cannot listen, 2 for wrong usage."""
    if len(arguments) != 1 or not interfaces.is_mac(arguments[0]):
        print(_USAGE, file=sys.stderr)
        return 2
    try:
        link = interfaces.find(arguments[0])
    except interfaces.Missing as error:
        print(f"capture: {error}", file=sys.stderr)
        return 1
    return record(link)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
