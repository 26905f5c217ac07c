"""The command `flatten`: one qcow2 file of an overlay and the layers below it.

    docker exec CONTAINER flatten OVERLAY [LAYER...] BASE TARGET

Only these files are read, whatever files their headers name. Time and space are limited to what honest layers can
need: a hostile one may refer to the same piece again and again.
"""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from virtainer import overlay, qcow2

_MIB = 2**20
_SPARE_BYTES = 64 * _MIB
_START_SECONDS, _SLOWEST_BYTES_PER_SECOND = 60, 4 * _MIB


class Failed(Exception):
    """The flat disk could not be made; the text says why."""


def flatten(layers: list[Path], target: Path) -> None:
    """Write the disk that `layers` make together, the uppermost first, to `target`; raises `Failed` or OSError."""
    headers = []
    for layer in layers:
        try:
            headers.append(overlay.read_header(layer))
        except qcow2.Refused as refused:
            raise Failed(f"{layer} {refused}") from None
    # The upper layers hold their data uncompressed; the guest disk's may be compressed.
    limit = sum(layer.stat().st_size for layer in layers[:-1]) + headers[-1].size
    limit += limit // 512 + _SPARE_BYTES
    seconds = _START_SECONDS + limit // _SLOWEST_BYTES_PER_SECOND
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        subprocess.run(
            ["qemu-img", "convert", "-q", "-O", "qcow2", source(layers), str(target)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=seconds,
            check=True,
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"{layers[0]} was not converted within {seconds} s") from None
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        if error.returncode == -signal.SIGXFSZ or "File too large" in said:
            said = f"the disk would be larger than {limit // _MIB} MiB, more than all layers hold"
        raise Failed(
            f"{layers[0]} cannot be converted: {said or f'qemu-img ended with {error.returncode}'}"
        ) from None


def source(layers: list[Path]) -> str:
    """Describe a chain of layers for QEMU's tools, so that they do not follow names in headers."""
    node: dict[str, Any] | None = None
    for layer in reversed(layers):
        node = {"driver": "qcow2", "file": {"driver": "file", "filename": str(layer)}, "backing": node}
    return f"json:{json.dumps(node)}"


def main(arguments: list[str]) -> int:
    """Run the command: exit code 1 when it does not work, 2 for wrong usage."""
    if len(arguments) < 3:  # noqa: PLR2004
        print("usage: flatten OVERLAY [LAYER...] BASE TARGET", file=sys.stderr)
        return 2
    *layers, target = map(Path, arguments)
    try:
        flatten(layers, target)
    except (Failed, OSError) as error:
        print(f"flatten: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
