"""The helper in a guest that is saved: it gives each restored guest its hostname, entropy and clock.

It runs as root, with the name of a virtio-serial port and a hostname as its arguments; a guest with another hostname
keeps it. At the other end of the port is the supervisor: `images/runtime/virtainer/clone_agent.py` describes their
lines. The helper removes its file, and keeps running, so that a snapshot of the restored guest needs no other.

It imports nothing of this package, and of the standard library only modules that Python has loaded anyway or that
are written in C: in an emulated guest, `socket`, `pathlib` and `contextlib` make the start half a second longer.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import sys
import time

PORTS = "/sys/class/virtio-ports"
READY = b"ready\n"
ASKS_FOR_TIME = b"time?\n"
RNDADDENTROPY, RNDRESEEDCRNG = 0x40085203, 0x5207  # linux/random.h
SIGKILL = 9  # signal(7)


def find_port(name: str) -> str:
    """Return the device of the virtio-serial port called `name`."""
    for each in os.listdir(PORTS):
        with open(f"{PORTS}/{each}/name") as file:
            if file.read().strip() == name:
                return f"/dev/{each}"
    raise SystemExit(f"no virtio-serial port is called {name}")


def open_port(device: str) -> int:
    """Open the port. Only one process can: end an earlier helper."""
    while True:
        try:
            return os.open(device, os.O_RDWR)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
        for each in os.listdir("/proc"):
            if each.isdigit() and int(each) != os.getpid():
                try:
                    with open(f"/proc/{each}/cmdline", "rb") as file:
                        if __file__.encode() in file.read().split(b"\0"):
                            os.kill(int(each), SIGKILL)
                except OSError:  # that process has just ended
                    pass
        time.sleep(0.01)


def read_line(port: int) -> bytes:
    """Wait for a line, and return it."""
    line = b""
    while not line.endswith(b"\n"):
        line += os.read(port, 4096)
    return line


def read_order(port: int) -> list[str]:
    """Wait for an order, and return its words; answer empty lines, which ask whether there is a helper."""
    while not (words := read_line(port).decode().split()):
        os.write(port, READY)
    return words


def rename(hostname: str) -> None:
    """Set the guest's hostname, for now and for its next boot."""
    kernel = os.open("/proc/sys/kernel/hostname", os.O_WRONLY)
    os.write(kernel, hostname.encode())
    os.close(kernel)
    file = os.open("/etc/hostname", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.write(file, hostname.encode() + b"\n")
    os.close(file)


def become(port: int, random: int, former: str) -> None:
    """Wait for an order, and renew the guest.

    This code runs for the first time in a clone, and so is translated there in an emulated guest: it takes 0.3 s with
    the conveniences of Python's library, a third of it without.
    """
    hostname, entropy = read_order(port)
    # random(4): add to the kernel's pool, and reseed its generator from that at once.
    seed = bytes.fromhex(entropy)
    fcntl.ioctl(random, RNDADDENTROPY, struct.pack("ii", len(seed) * 8, len(seed)) + seed)
    fcntl.ioctl(random, RNDRESEEDCRNG)
    present = os.uname().nodename
    if present == former != hostname:
        rename(hostname)
        present = hostname
    # The first time is a rehearsal: else the clock would be late by the time for its translation.
    for _ in range(2):
        os.write(port, ASKS_FOR_TIME)
        time.clock_settime(time.CLOCK_REALTIME, float(read_line(port)))
    os.write(port, b"done %b %.6f\n" % (present.encode(), time.time()))


def main() -> None:
    """Renew the guest with each order that comes through the port."""
    _, name, former = sys.argv
    # No other process should run between the question for the time and the setting of the clock.
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except OSError:
        pass
    os.unlink(__file__)
    os.chdir("/")  # the folder in which it was started may have to be removed
    random, port = os.open("/dev/random", os.O_WRONLY), open_port(find_port(name))
    os.write(port, READY)
    while True:
        become(port, random, former)


if __name__ == "__main__":
    main()
