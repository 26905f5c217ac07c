"""What a process has made is its own: a forked child cannot use it, and nothing the child does touches it.

A child inherits descriptors, locks and finalizers of its parent. A byte that it writes into an SSH session, or a lock
that it gives back, would be the parent's. So just after a fork, the child closes its copies, and what stays of the
objects refuses any use.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import weakref
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeVar

from pytest_virtainers.errors import VirtainerError

if TYPE_CHECKING:
    import paramiko


class Disownable(Protocol):
    """An object that belongs to the process that made it."""

    def disown(self) -> object:
        """Let go, in a forked child, of what belongs to its parent; other threads may have held any lock."""


T = TypeVar("T", bound=Disownable)
_sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
_objects: weakref.WeakSet[Disownable] = weakref.WeakSet()


class Owner:
    """The process that made something.

    Args:
        what: the thing, as the subject of a sentence.
        remedy: what a forked child can do instead.
    """

    def __init__(self, what: str, remedy: str) -> None:
        self._pid, self._what, self._remedy = os.getpid(), what, remedy

    @property
    def is_here(self) -> bool:
        """Whether this is the process."""
        return os.getpid() == self._pid

    def check(self) -> None:
        """Raise `VirtainerError` in another process."""
        if not self.is_here:
            raise self.refusal()

    def refusal(self) -> VirtainerError:
        """Return the error that says who may use the thing."""
        return VirtainerError(
            f"{self._what} belongs to process {self._pid}; its forked child {os.getpid()} cannot use it. "
            f"{self._remedy}"
        )


class Disowned:
    """Stands in a forked child for a part of something that belongs to its parent: any use raises the refusal."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner

    def __getattr__(self, name: str) -> NoReturn:
        """Raise `VirtainerError`; `AttributeError` where Python itself looks for a protocol."""
        if name.startswith("__"):
            raise AttributeError(name)
        raise self._owner.refusal()


def disown_in_child(thing: T) -> T:
    """Have a forked child call `thing.disown()`; return the thing."""
    _objects.add(thing)
    return thing


def close_in_child(sock: socket.socket) -> socket.socket:
    """Have a forked child close its copy of a socket; return the socket."""
    _sockets.add(sock)
    return sock


def close_copy(sock: socket.socket) -> None:
    """Close the descriptor alone: the connection is not shut down, and stays open in other processes."""
    with contextlib.suppress(OSError):
        os.close(sock.detach())


def silence(transport: paramiko.Transport) -> None:
    """Keep a forked child's copy of an SSH session from saying anything, even when its channels are collected."""
    inner: Any = transport
    inner.active = False
    if isinstance(inner.sock, socket.socket):
        close_copy(inner.sock)
    for channel in list(inner._channels._map.values()):
        channel.lock = threading.Lock()
        channel.closed = True


def _disown() -> None:
    # Sockets first: whatever is collected from here on has nothing to write to.
    for sock in list(_sockets):
        close_copy(sock)
    for thing in list(_objects):
        with contextlib.suppress(Exception):  # one failure must not keep the others from it
            thing.disown()


os.register_at_fork(after_in_child=_disown)
