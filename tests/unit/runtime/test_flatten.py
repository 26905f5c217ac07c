"""One disk of several layers, with the real qemu-img: the files that it reads, and its limits."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import virtainer

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="without qemu-img")
MIB = 2**20
CLUSTER = 65536
_COPIED = 1 << 63


def tool(*words: str) -> None:
    subprocess.run(words, check=True)


def flatten(*paths: Path) -> tuple[int, str]:
    """Run the command; return its exit code and its output."""
    done = subprocess.run(
        [sys.executable, "-S", "-m", "virtainer.flatten", *map(str, paths)],
        env={**os.environ, "PYTHONPATH": str(Path(virtainer.__file__).parent.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == ""
    return done.returncode, done.stderr


@pytest.fixture
def chain(tmp_path: Path) -> list[Path]:
    """Return an overlay on a layer on a guest disk, each with its own word; the headers name another file."""
    paths = [tmp_path / "overlay", tmp_path / "layer", tmp_path / "base"]
    below: Path | None = None
    for number, path in enumerate(reversed(paths)):
        (tmp_path / "word").write_bytes(path.name.encode().ljust(512))
        backed = [] if below is None else ["-F", "qcow2", "-b", str(below)]
        tool("qemu-img", "create", "-q", "-f", "qcow2", *backed, str(path), "8M")
        tool("qemu-io", "-f", "qcow2", "-c", f"write -q -s {tmp_path / 'word'} {number * 512} 512", str(path))
        below = path
    for path in paths[:-1]:
        tool("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", "/etc/hostname", str(path))
    return paths


def test_the_layers_become_one_disk_whatever_their_headers_name(chain: list[Path], tmp_path: Path) -> None:
    assert flatten(*chain, tmp_path / "flat") == (0, "")
    tool("qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(tmp_path / "flat"), str(tmp_path / "raw"))
    assert (tmp_path / "raw").read_bytes()[:1536].split() == [b"base", b"layer", b"overlay"]
    said = subprocess.run(["qemu-img", "info", str(tmp_path / "flat")], capture_output=True, text=True, check=True)
    assert "backing" not in said.stdout


def test_an_overlay_with_its_data_in_another_file_is_refused(chain: list[Path], tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"PRIVATE KEY".ljust(MIB))
    options = f"data_file={tmp_path}/data,data_file_raw=on"
    tool("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, str(tmp_path / "hostile"), "1M")
    (tmp_path / "data").unlink()
    (tmp_path / "data").symlink_to("secret")
    said = f"flatten: {tmp_path}/hostile keeps its data in another file\n"
    assert flatten(tmp_path / "hostile", chain[-1], tmp_path / "flat") == (1, said)
    assert not (tmp_path / "flat").exists()


def test_a_disk_that_repeats_one_piece_is_limited(tmp_path: Path) -> None:
    hostile, base, flat = tmp_path / "hostile", tmp_path / "base", tmp_path / "flat"
    tool("qemu-img", "create", "-q", "-f", "qcow2", str(base), "1M")
    tool("qemu-img", "create", "-q", "-f", "qcow2", str(hostile), "512M")
    tool("qemu-io", "-f", "qcow2", "-c", "write -q -P 7 0 64k", str(hostile))
    with hostile.open("r+b") as file:
        head = file.read(CLUSTER)
        file.seek(*struct.unpack_from(">Q", head, 40))  # the first table
        (second,) = struct.unpack(">Q", file.read(8))
        file.seek(second & ~_COPIED)
        entry = file.read(8)
        file.seek(-8, os.SEEK_CUR)
        file.write(entry * (512 * MIB // CLUSTER))
    code, said = flatten(hostile, base, flat)
    assert code == 1
    assert re.fullmatch(
        rf"flatten: {hostile} cannot be converted: the disk would be larger than 6\d MiB, "
        r"more than all layers hold\n",
        said,
    )
    assert flat.stat().st_size < 70 * MIB


def test_wrong_usage_is_refused(tmp_path: Path) -> None:
    code, said = flatten(tmp_path)
    assert (code, said) == (2, "usage: flatten OVERLAY [LAYER...] BASE TARGET\n")
