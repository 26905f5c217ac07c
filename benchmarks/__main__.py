"""All benchmarks, or those that are named, as one table.

    VIRTAINER_ENGINE=docker python -m benchmarks [--json FILE] [NAME ...]

Nothing else should run on the machine. All of them take about half an hour without KVM.
"""

import argparse
import importlib
from pathlib import Path

from benchmarks.rows import Row, as_json, machine, markdown

NAMES = (
    "clone",
    "cold_boot",
    "suite",
    "launch",
    "layers",
    "idle",
    "several",
    "many",
    "files",
    "console",
    "plugin_load",
    "debvm",
    "virtme_ng",
)


def main() -> None:
    """Run them one after another; show the table so far after each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *NAMES], metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all values there")
    options = parser.parse_args()
    rows: list[Row] = []
    print(", ".join(f"{name}: {value}" for name, value in machine().items()), flush=True)
    for name in options.names or NAMES:
        rows += importlib.import_module(f"benchmarks.{name}").measure()
        print(f"\n{markdown(rows)}", flush=True)
        if options.json:
            options.json.write_text(as_json(rows))


if __name__ == "__main__":
    main()
