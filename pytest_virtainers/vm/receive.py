"""Receives a file or tree from a guest that is not trusted.

What arrives is extracted into a private folder next to its place, and then renamed, entry by entry. Every step is
relative to a folder's descriptor and follows no symbolic link: neither one of the stream, nor one that an earlier
transfer or another process has put into the destination. Only the folders that lead to the destination are followed,
as they are the user's.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from pytest_virtainers.vm.install import TREE, Refused, check_place, place
from pytest_virtainers.vm.no_follow import create, descend, descended, entered, is_folder, names, write_at
from pytest_virtainers.vm.shown import shown
from pytest_virtainers.vm.tar_stream import Kind, Member

if TYPE_CHECKING:
    from collections.abc import Sequence

_MAX_PATH, _MAX_DEPTH = 4096, 200
_MAX_NAMED = 5  # of what was skipped
_SPECIAL = {Kind.FIFO: stat.S_IFIFO, Kind.CHARACTER_DEVICE: stat.S_IFCHR, Kind.BLOCK_DEVICE: stat.S_IFBLK}
_USUAL_BITS = {Kind.FILE: 0o0777, Kind.FOLDER: 0o1777}


class SourceIsLink(Refused):
    """The source itself is a symbolic link.

    Attributes:
        target: where it leads to.
    """

    def __init__(self, target: bytes) -> None:
        super().__init__(f"it is a symbolic link to {shown(target)}")
        self.target = target


class Arrival:
    """Receives the members of one transfer.

    Attributes:
        count: members that have arrived.
        skipped: those that were not created.
    """

    def __init__(self, folder: int, name: bytes, *, special: bool) -> None:
        """Receive what the guest calls `name`.

        Args:
            folder: descriptor of a private, empty folder.
            name: the beginning of all members' names; `.` for the content of the folder itself.
            special: create special files and links that lead out of the tree, and keep setuid bits.
        """
        self.count = 0
        self.skipped = 0
        self._folder = folder
        self._root = [] if name == b"." else [name]
        self._special = special
        self._named: list[str] = []
        self._links: list[tuple[bytes, ...]] = []
        self._folders: dict[tuple[bytes, ...], tuple[int, int]] = {}
        self._parent: tuple[tuple[bytes, ...], int] | None = None  # path and descriptor of the last one that was used
        self._file: tuple[int, Member] | None = None

    def close(self) -> None:
        """Close what is open."""
        if self._file is not None:
            os.close(self._file[0])
        if self._parent is not None:
            os.close(self._parent[1])
        self._file = self._parent = None

    @property
    def report(self) -> str:
        """What was skipped, on one line of limited length; empty if nothing was."""
        if not self.skipped:
            return ""
        more = self.skipped - len(self._named)
        names = ", ".join(self._named) + (f" and {more} more" if more else "")
        return f"skipped {self.skipped} of {self.count}: {names}"

    def begin(self, member: Member) -> None:
        """Create a member; an existing one of that name is replaced."""
        self.count += 1
        path = self._path(member.name)
        if not self._special:
            if member.kind is Kind.LINK and path == (TREE,):
                raise SourceIsLink(member.target)
            if member.kind in _SPECIAL:
                if path == (TREE,):
                    raise Refused(f"it is a {member.kind.value}. Create one here with special=True (--special)")
                self._skip(path, f"({member.kind.value})")
                return
        at, name = self._parent_of(path), path[-1]
        if member.kind is Kind.FOLDER:
            if not is_folder(name, at):
                self._clear(path, at)
                os.mkdir(name, 0o700, dir_fd=at)
            self._folders[path] = member.mode & self._bits(Kind.FOLDER), member.mtime
            return
        if member.kind is Kind.FILE:
            try:
                file = create(name, at)
            except FileExistsError:
                self._clear(path, at)
                file = create(name, at)
            self._file = file, member
            return
        self._clear(path, at)
        if member.kind is Kind.LINK:
            self._link(path, at, member.target)
            os.utime(name, ns=(member.mtime, member.mtime), dir_fd=at, follow_symlinks=False)
        elif member.kind is Kind.HARD_LINK:
            self._hard_link(path, at, self._path(member.target))
        else:
            self._make_special(path, at, member)

    def write(self, offset: int, data: bytes) -> None:
        """Write a piece of the current file."""
        if self._file is not None:
            write_at(self._file[0], offset, data)

    def end(self) -> None:
        """Complete the current file."""
        if self._file is None:
            return
        file, member = self._file
        if member.size and member.segments != [(0, member.size)]:  # it may end with a hole
            os.ftruncate(file, member.size)
        os.fchmod(file, member.mode & self._bits(Kind.FILE))
        os.utime(file, ns=(member.mtime, member.mtime))
        os.close(file)
        self._file = None

    def finish(self) -> None:
        """Remove the links that lead out of the tree."""
        if self._special:
            return
        for path in self._links:
            at, name = self._parent_of(path), path[-1]
            try:
                target = os.readlink(name, dir_fd=at)
            except OSError:  # it was replaced
                continue
            if self._leads_out(path, target):
                os.unlink(name, dir_fd=at)
                self._skip(path, f"-> {shown(target)} (link out of the tree)")

    def install(self, dest: int, name: bytes | None) -> None:
        """Move the tree to `name` in the folder `dest`, or into that folder itself, and set the folders' modes.

        Raises:
            Refused: there is a folder in place of a file, or the other way round.
        """
        if name is None:
            with entered(self._folder, TREE) as tree:
                parts = names(tree)
                for each in parts:
                    check_place(tree, each, dest, each)
                for each in parts:
                    place(tree, each, dest, each)
        else:
            check_place(self._folder, TREE, dest, name)
            place(self._folder, TREE, dest, name)
        top = () if name is None else (name,)
        # The deepest first: a folder's mode may forbid access to what is in it.
        for path, (mode, mtime) in sorted(self._folders.items(), key=lambda item: -len(item[0])):
            with descended(dest, (*top, *path[1:])) as folder:
                os.fchmod(folder, mode)
                os.utime(folder, ns=(mtime, mtime))

    def _bits(self, kind: Kind) -> int:
        return 0o7777 if self._special else _USUAL_BITS[kind]

    def _path(self, name: bytes) -> tuple[bytes, ...]:
        """Check the name of a member, and return where it is below the private folder."""
        parts = [each for each in name[:_MAX_PATH].split(b"/") if each not in (b"", b".")]
        if len(name) > _MAX_PATH or len(parts) > _MAX_DEPTH:
            raise Refused(
                f"the path {shown(name)} is longer than {_MAX_PATH} bytes or has more than {_MAX_DEPTH} folders"
            )
        if name.startswith(b"/") or b".." in parts or b"\0" in name or parts[: len(self._root)] != self._root:
            raise Refused(f"the guest sent {shown(name)}, which is not part of what was asked for")
        return (TREE, *parts[len(self._root) :])

    def _parent_of(self, path: tuple[bytes, ...]) -> int:
        """Return a descriptor of a member's folder, which is created if it is missing; the next call closes it."""
        parent = path[:-1]
        if self._parent is None or self._parent[0] != parent:
            try:
                folder = descend(self._folder, parent, make=True)
            except NotADirectoryError:
                raise Refused(f"the guest sent {_joined(path)}, which lies in something that is no folder") from None
            if self._parent is not None:
                os.close(self._parent[1])
            self._parent = parent, folder
        return self._parent[1]

    def _clear(self, path: tuple[bytes, ...], at: int) -> None:
        """Remove what an earlier member of that name has left."""
        try:
            os.unlink(path[-1], dir_fd=at)
        except FileNotFoundError:
            pass
        except (IsADirectoryError, PermissionError):  # the latter on macOS
            raise Refused(f"the guest sent {_joined(path)} twice, as a folder and as something else") from None

    def _link(self, path: tuple[bytes, ...], at: int, target: bytes) -> None:
        if not target or b"\0" in target:
            raise Refused(f"the guest sent {_joined(path)}, a symbolic link to {shown(target) or 'nothing'}")
        os.symlink(target, path[-1], dir_fd=at)
        self._links.append(path)

    def _hard_link(self, path: tuple[bytes, ...], at: int, target: tuple[bytes, ...]) -> None:
        """Link to what has arrived; a link to a symbolic link is another one with the same target."""
        try:
            with descended(self._folder, target[:-1]) as folder:
                found = os.lstat(target[-1], dir_fd=folder)
                if stat.S_ISLNK(found.st_mode):
                    self._link(path, at, os.readlink(target[-1], dir_fd=folder))
                elif stat.S_ISDIR(found.st_mode):
                    raise Refused(f"the guest sent {_joined(path)}, a hard link to a folder")
                else:
                    os.link(target[-1], path[-1], src_dir_fd=folder, dst_dir_fd=at, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            self._skip(path, f"(hard link to {_joined(target)}, which has not arrived)")

    def _make_special(self, path: tuple[bytes, ...], at: int, member: Member) -> None:
        try:
            os.mknod(path[-1], 0o600 | _SPECIAL[member.kind], os.makedev(*member.device), dir_fd=at)
        except (PermissionError, OverflowError):
            self._skip(path, f"({member.kind.value}, which only root can create)")
            return
        os.chmod(path[-1], member.mode, dir_fd=at)
        os.utime(path[-1], ns=(member.mtime, member.mtime), dir_fd=at)

    def _leads_out(self, path: tuple[bytes, ...], target: bytes) -> bool:
        """Return whether a link leaves the tree, or might do so when another link of the tree is replaced.

        `..` is only followed out of a folder that has arrived: what is behind a link, or not there, may change.
        """
        if target.startswith(b"/"):
            return True
        place, known = list(path[:-1]), True
        for part in target.split(b"/"):
            if part == b"..":
                if not known or len(place) <= 1:
                    return True
                place.pop()
            elif part not in (b"", b"."):
                place.append(part)
                known = known and self._has_folder(place)
        return False

    def _has_folder(self, path: Sequence[bytes]) -> bool:
        try:
            with descended(self._folder, path):
                return True
        except OSError:
            return False

    def _skip(self, path: tuple[bytes, ...], why: str) -> None:
        self.skipped += 1
        if len(self._named) < _MAX_NAMED:
            self._named.append(f"{_joined(path)} {why}")


def _joined(path: tuple[bytes, ...]) -> str:
    return shown(b"/".join(path[1:])) or "."
