"""The digest of a `prepare` function: of the code that it runs, and of the values that the code uses.

A new template is made when it changes. It covers the function's source, its default and `functools.partial`
arguments, the variables of its closure, and the module's own functions and values that it names, again with
theirs. Classes, their objects and names of other modules count with the file of their module. Installed packages and
the standard library count by name only: a new version of a library does not change the digest. A `pathlib.Path`
counts with the content of the file or folder that it names.
"""

from __future__ import annotations

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
_CACHED = type(functools.cache(len))
_LIBRARIES = (Path(sysconfig.get_path("stdlib")), Path(__file__).parents[1])


def digest(function: Callable[..., object]) -> str:
    """Return 16 hexadecimal digits for `function`.

    Raises:
        ValueError: its source cannot be read, or a value that it uses looks different in each process.
    """
    sha = hashlib.sha256()
    _add(sha.update, "function", function, set())
    return sha.hexdigest()[:16]


def _add(update: Callable[[bytes], object], name: str, value: Any, seen: set[FunctionType]) -> None:
    update(f"\0{name}\0".encode())
    if isinstance(value, FunctionType):
        if value not in seen:
            seen.add(value)
            _add_function(update, value, seen)
    elif isinstance(value, type):
        if not _add_home(update, value):
            update(_source(value).encode())
    elif isinstance(value, Path):
        _add_files(update, value)
    elif parts := _parts(value):
        for part, each in parts:
            _add(update, part, each, seen)
    else:
        update(_shown(name, value).encode())
        _add_home(update, type(value))


def _add_home(update: Callable[[bytes], object], thing: Any) -> bool:
    """Add code by its name and, if the tested project has it, its module's file; return whether it has a module.

    Modules without a file, installed ones, the standard library and this package are not part of the project.
    """
    module = thing if isinstance(thing, ModuleType) else sys.modules.get(str(getattr(thing, "__module__", None)))
    update(f"\0{module and module.__name__}.{getattr(thing, '__name__', '')}".encode())
    if module is None:
        return False
    if file := getattr(module, "__file__", None):
        path = Path(file)
        if not _INSTALLED & {*path.parts} and not any(map(path.is_relative_to, _LIBRARIES)):
            _add_files(update, path)
    return True


def _parts(value: Any) -> list[tuple[str, Any]]:
    """Return the values that a value holds, with a name for each."""
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


def _add_function(update: Callable[[bytes], object], function: FunctionType, seen: set[FunctionType]) -> None:
    update(_source(function).encode())
    _add(update, "defaults", function.__defaults__ or (), seen)
    _add(update, "keyword defaults", function.__kwdefaults__ or {}, seen)
    named = {name: function.__globals__[name] for name in _names(function.__code__) if name in function.__globals__}
    for name, each in sorted({**named, **inspect.getclosurevars(function).nonlocals}.items()):
        value = each.__wrapped__ if isinstance(each, _CACHED) else each
        elsewhere = callable(value) and getattr(value, "__module__", None) != function.__module__
        if elsewhere or isinstance(value, ModuleType):
            update(f"\0{name}\0{type(value).__name__}".encode())
            _add_home(update, value)
        else:
            _add(update, name, value, seen)


def _names(code: CodeType) -> set[str]:
    """Return the names that code uses, with those of functions, lambdas, comprehensions and classes inside it."""
    inner = (_names(each) for each in code.co_consts if isinstance(each, CodeType))
    return set(code.co_names).union(*inner)


def _source(thing: Callable[..., object]) -> str:
    try:
        return inspect.getsource(thing)
    except (OSError, TypeError) as error:
        raise ValueError(f"the source of {thing!r} cannot be read: write it in a file ({error})") from error


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
