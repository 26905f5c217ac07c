"""Runs in a guest that is saved, as root: waits meanwhile, and makes what goes on from there an individual.

Standard library only, without anything of this package, and of that only what Python has loaded anyway or is written
in C: where the guest is emulated, `socket`, `pathlib` and `contextlib` make the start half a second longer. The other
end of its virtio-serial port is the supervisor (`images/runtime/virtainer/clone_agent.py`, where the words are
explained). Started with the port's name and a hostname: a guest that is called otherwise keeps its name. It stays, so
that a snapshot of what has gone on need not wait for another one; of its file nothing remains.
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
    """Find the device of the virtio-serial port called `name`."""
    for each in os.listdir(PORTS):
        with open(f"{PORTS}/{each}/name") as file:
            if file.read().strip() == name:
                return f"/dev/{each}"
    raise SystemExit(f"no virtio-serial port is called {name}")


def open_port(device: str) -> int:
    """Open it; the kernel lets only one do so: an earlier helper, left for another purpose, makes room."""
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
                except OSError:  # it has just ended
                    pass
        time.sleep(0.01)


def read_line(port: int) -> bytes:
    """Wait for one line."""
    line = b""
    while not line.endswith(b"\n"):
        line += os.read(port, 4096)
    return line


def read_order(port: int) -> list[str]:
    """Wait until we are told something, and answer to who asks whether we do."""
    while not (words := read_line(port).decode().split()):
        os.write(port, READY)
    return words


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
    hostname, entropy = read_order(port)
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
    """Wait on the port, and do it whenever we are told."""
    _, name, former = sys.argv
    # Between asking for the time and setting the clock, nobody else should run.
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except OSError:
        pass
    os.unlink(__file__)
    os.chdir("/")  # the folder of whoever has started us may have to go
    random, port = os.open("/dev/random", os.O_WRONLY), open_port(find_port(name))
    os.write(port, READY)
    while True:
        become(port, random, former)


if __name__ == "__main__":
    main()
