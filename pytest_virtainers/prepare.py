"""What identifies a `prepare` function: the code that it runs, and what that code is given.

A template is made anew when this changes. Counted are the function's source, its default and `functools.partial`
arguments, the variables of its closure, and the module's own functions, classes and values that it names, again with
theirs. Another module counts with its file when something of it is named; but what is installed, or Python's own, by
its name alone: a new version of a library is not a new preparation. A `pathlib.Path` counts with the content of the
file or folder to which it leads.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import re
import sys
import sysconfig
from collections.abc import Callable, Mapping
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

_INSTALLED = {"site-packages", "dist-packages"}
_OURS = (Path(sysconfig.get_path("stdlib")), Path(__file__).parent)


class _NoSource(ValueError):
    pass


def digest(function: Callable[..., object]) -> str:
    """Give 16 hexadecimal digits for `function`.

    Raises:
        ValueError: its source cannot be had, or a value that it uses looks different in each process.
    """
    sha = hashlib.sha256()
    _add(sha.update, "function", function, frozenset())
    return sha.hexdigest()[:16]


def _add(update: Callable[[bytes], object], name: str, value: Any, seen: frozenset[object]) -> None:
    update(f"\0{name}\0".encode())
    if isinstance(value, FunctionType):
        if value not in seen:
            _add_function(update, value, seen | {value})
    elif isinstance(value, type):
        if value not in seen:
            _add_class(update, value, seen | {value})
    elif isinstance(value, Path):
        _add_files(update, value)
    elif parts := _parts(value):
        for part, each in parts:
            _add(update, part, each, seen)
    else:
        update(_shown(name, value).encode())
        with contextlib.suppress(_NoSource):  # what it looks like is all that can be told of it
            _add_class(update, type(value), seen | {type(value)})


def _add_class(update: Callable[[bytes], object], kind: type, seen: frozenset[object]) -> None:
    home = _home(kind)
    if home is not None and _is_library(home):
        update(f"{home.__name__}.{kind.__name__}".encode())
        return
    update(_source(kind).encode())
    for name, member in vars(kind).items():
        function = getattr(member, "__func__", member)
        # Those that a dataclass was given follow from its source.
        if isinstance(function, FunctionType) and function.__code__.co_filename != "<string>":
            _add(update, name, function, seen)


def _home(thing: object) -> ModuleType | None:
    """Give the module of a piece of code, if it is one that was imported."""
    return thing if isinstance(thing, ModuleType) else sys.modules.get(str(getattr(thing, "__module__", None)))


def _is_library(module: ModuleType) -> bool:
    """Tell whether a module is Python's, installed, or ours, rather than of the project that is tested."""
    file = getattr(module, "__file__", None)
    return file is None or bool(_INSTALLED & {*Path(file).parts}) or any(map(Path(file).is_relative_to, _OURS))


def _parts(value: Any) -> list[tuple[str, Any]]:
    """Take apart what holds other values."""
    if isinstance(value, functools.partial):
        return [("function", value.func), ("arguments", value.args), ("keywords", value.keywords)]
    if isinstance(value, MethodType):
        return [("function", value.__func__), ("self", value.__self__)]
    if isinstance(value, Mapping):
        return [(repr(key), value[key]) for key in sorted(value, key=repr)]
    if isinstance(value, list | tuple):
        return [(str(number), each) for number, each in enumerate(value)]
    return []


def _shown(name: str, value: object) -> str:
    shown = repr(sorted(value, key=repr) if isinstance(value, set | frozenset) else value)
    if re.search(r" at 0x[0-9a-f]+", shown):
        raise ValueError(f"{name} is {shown}, which looks different in each process: use plain values or paths")
    return shown


def _add_function(update: Callable[[bytes], object], function: FunctionType, seen: frozenset[object]) -> None:
    update(_source(function).encode())
    _add(update, "defaults", function.__defaults__ or (), seen)
    _add(update, "keyword defaults", function.__kwdefaults__ or {}, seen)
    named = {name: function.__globals__[name] for name in _names(function.__code__) if name in function.__globals__}
    for name, each in sorted({**named, **inspect.getclosurevars(function).nonlocals}.items()):
        value = inspect.unwrap(each) if callable(each) else each
        home = _home(value) if callable(value) or isinstance(value, ModuleType) else None
        if home is None or home.__name__ == function.__module__:
            _add(update, name, value, seen)
        else:
            update(f"\0{name}\0{home.__name__}.{getattr(value, '__name__', '')}".encode())
            if not _is_library(home):
                _add_files(update, Path(str(home.__file__)))


def _names(code: CodeType) -> set[str]:
    """Give what a code and the functions, lambdas, comprehensions and classes inside it name."""
    inner = (_names(each) for each in code.co_consts if isinstance(each, CodeType))
    return set(code.co_names).union(*inner)


def _source(thing: Callable[..., object]) -> str:
    try:
        return inspect.getsource(thing)
    except (OSError, TypeError) as error:
        raise _NoSource(f"the source of {thing!r} cannot be read: write it in a file ({error})") from error


def _add_files(update: Callable[[bytes], object], path: Path) -> None:
    members = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    for each in members:
        content = b"missing"
        if each.is_file():
            seen = each.stat()
            content = _file_digest(each, seen.st_size, seen.st_mtime_ns, seen.st_ino)
        update(f"\0{each.relative_to(path)}\0".encode() + content)


@functools.cache
def _file_digest(path: Path, _size: int, _mtime_ns: int, _inode: int) -> bytes:
    """Read a file only once as long as it looks the same: each VM asks for the digest of its `prepare`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
