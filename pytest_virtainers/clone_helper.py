"""Runs in a guest that is saved, as root: waits meanwhile, and makes what goes on from there an individual.

Standard library only, without anything of this package, and of that only what Python has loaded anyway or is written
in C: where the guest is emulated, `socket`, `pathlib` and `contextlib` make the start half a second longer. The other
end of its virtio-serial port is the supervisor (`images/runtime/virtainer/individual.py`, where the words are
explained). Started with the port's name and a hostname: a guest that is called otherwise keeps its name. When its
work is done, nothing of it remains.
"""

from __future__ import annotations

import fcntl
import os
import struct
import sys
import time

PORTS = "/sys/class/virtio-ports"
READY = b"ready\n"
ASKS_FOR_TIME = b"time?\n"
RNDADDENTROPY, RNDRESEEDCRNG = 0x40085203, 0x5207  # linux/random.h


def find_port(name: str) -> str:
    """Find the device of the virtio-serial port called `name`."""
    for each in os.listdir(PORTS):
        with open(f"{PORTS}/{each}/name") as file:
            if file.read().strip() == name:
                return f"/dev/{each}"
    raise SystemExit(f"no virtio-serial port is called {name}")


def read_line(port: int) -> bytes:
    """Wait for one line."""
    line = b""
    while not line.endswith(b"\n"):
        line += os.read(port, 4096)
    return line


def rename(hostname: str) -> None:
    """Give the guest its hostname, for now and for its next boot."""
    kernel = os.open("/proc/sys/kernel/hostname", os.O_WRONLY)
    os.write(kernel, hostname.encode())
    os.close(kernel)
    file = os.open("/etc/hostname", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.write(file, hostname.encode() + b"\n")
    os.close(file)


def become(port: int, random: int, former: str) -> None:
    """Do as we are told through the port.

    What runs here runs for the first time in a clone, and has to be translated where it is emulated: 0.3 s with the
    comforts of Python's library, a third of it without.
    """
    hostname, entropy = read_line(port).decode().split()
    # random(4): add to the kernel's pool, and let its generator start anew from that at once.
    seed = bytes.fromhex(entropy)
    fcntl.ioctl(random, RNDADDENTROPY, struct.pack("ii", len(seed) * 8, len(seed)) + seed)
    fcntl.ioctl(random, RNDRESEEDCRNG)
    present = os.uname().nodename
    if present == former != hostname:
        rename(hostname)
        present = hostname
    # The first time is a rehearsal, or else the clock would be late by what its translation takes.
    for _ in range(2):
        os.write(port, ASKS_FOR_TIME)
        time.clock_settime(time.CLOCK_REALTIME, float(read_line(port)))
    os.write(port, b"done %b %.6f\n" % (present.encode(), time.time()))


def main() -> None:
    """Wait on the port, do it once, end."""
    _, name, former = sys.argv
    # Between asking for the time and setting the clock, nobody else should run.
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except OSError:
        pass
    os.unlink(__file__)
    random, port = os.open("/dev/random", os.O_WRONLY), os.open(find_port(name), os.O_RDWR)
    os.write(port, READY)
    become(port, random, former)
    os._exit(0)  # without the interpreter's own tidying, which is long to translate


if __name__ == "__main__":
    main()
