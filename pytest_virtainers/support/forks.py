"""Keep forked children away from the connections, locks and VMs of their parent.

A child inherits its parent's descriptors, locks and finalizers. A byte that it writes into an SSH session, or a lock
that it releases, would be the parent's. So a child closes its copies just after the fork, and the objects refuse any
further use.
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
    """An object that belongs to the process that created it."""

    def disown(self) -> object:
        """Release, in a forked child, what belongs to its parent; threads of the parent may have held any lock."""


T = TypeVar("T", bound=Disownable)
_sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
_objects: weakref.WeakSet[Disownable] = weakref.WeakSet()


class Owner:
    """The process that created a thing.

    Args:
        what: the thing, as the subject of a sentence.
        remedy: a sentence on what a forked child can do instead.
    """

    def __init__(self, what: str, remedy: str) -> None:
        self._pid, self._what, self._remedy = os.getpid(), what, remedy

    @property
    def is_here(self) -> bool:
        """Whether the calling process is the owner."""
        return os.getpid() == self._pid

    def check(self) -> None:
        """Raise `VirtainerError` in another process."""
        if not self.is_here:
            raise self.refusal()

    def refusal(self) -> VirtainerError:
        """Return the error for a use in another process."""
        return VirtainerError(
            f"{self._what} belongs to process {self._pid}; its forked child {os.getpid()} cannot use it. "
            f"{self._remedy}"
        )


class Disowned:
    """A stand-in, in a forked child, for a part of its parent's object: any use raises the owner's refusal."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner

    def __getattr__(self, name: str) -> NoReturn:
        """Raise `VirtainerError`, or `AttributeError` when Python looks for a protocol."""
        if name.startswith("__"):
            raise AttributeError(name)
        raise self._owner.refusal()


def disown_in_child(thing: T) -> T:
    """Register an object whose `disown` a forked child calls; return the object."""
    _objects.add(thing)
    return thing


def close_in_child(sock: socket.socket) -> socket.socket:
    """Register a socket whose copy a forked child closes; return the socket."""
    _sockets.add(sock)
    return sock


def close_copy(sock: socket.socket) -> None:
    """Close only the descriptor: the connection is not shut down, and stays open in other processes."""
    with contextlib.suppress(OSError):
        os.close(sock.detach())


def silence(transport: paramiko.Transport) -> None:
    """Prevent a forked child's copy of an SSH session from writing, even when its channels are garbage-collected."""
    inner: Any = transport
    inner.active = False
    if isinstance(inner.sock, socket.socket):
        close_copy(inner.sock)
    for channel in list(inner._channels._map.values()):
        channel.lock = threading.Lock()
        channel.closed = True


def _disown() -> None:
    # Sockets first: finalizers that run from here on have nothing to write to.
    for sock in list(_sockets):
        close_copy(sock)
    for thing in list(_objects):
        with contextlib.suppress(Exception):  # one failure must not prevent the others
            thing.disown()


os.register_at_fork(after_in_child=_disown)
