"""What the installed plugin costs a pytest run that does not use it: pairs of runs, with and without it.

    python -m benchmarks.plugin_load [PAIRS]

Once with bytecode on disk, and once as in many container images: PYTHONDONTWRITEBYTECODE=1, and no bytecode of the
plugin there. Target: at most 20 ms in both cases.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest_virtainers


def seconds(folder: str, environment: dict[str, str], *options: str) -> float:
    """Run pytest on an empty test; return its wall time in seconds."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def measure(title: str, pairs: int, folder: str, environment: dict[str, str]) -> None:
    """Measure and print one case."""
    without_plugin, with_plugin, differences = [], [], []
    for number in range(pairs + 1):
        without, loaded = seconds(folder, environment, "-p", "no:virtainers"), seconds(folder, environment)
        if number:  # the first pair only warms the caches
            without_plugin.append(without)
            with_plugin.append(loaded)
            differences.append(loaded - without)
    floor, cost = statistics.median(without_plugin), statistics.median(differences)
    print(
        f"{title}: without the plugin {floor * 1000:.1f} ms, with it {statistics.median(with_plugin) * 1000:.1f} ms "
        f"(medians of {pairs}); median of paired differences {cost * 1000:.1f} ms, ratio {1 + cost / floor:.3f}"
    )


def main() -> None:
    """Measure and print."""
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    package = Path(pytest_virtainers.__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "test_nothing.py").write_text("def test_nothing(): pass\n")
        # A copy, so that the bytecode of the installed plugin stays.
        shutil.copytree(package, Path(folder, "copy", package.name), ignore=shutil.ignore_patterns("__pycache__"))
        copied = {**os.environ, "PYTHONPATH": str(Path(folder, "copy"))}
        measure("no bytecode", pairs, folder, {**copied, "PYTHONDONTWRITEBYTECODE": "1"})
        measure("bytecode", pairs, folder, {**copied, "PYTHONDONTWRITEBYTECODE": ""})


if __name__ == "__main__":
    main()
