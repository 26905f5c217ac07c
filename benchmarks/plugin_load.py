"""What the installed plugin costs a pytest run that does not use it: pairs of runs, with and without it.

Where Python may not write its compiled modules (many container images set `PYTHONDONTWRITEBYTECODE`), it compiles the
plugin for each run.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest_virtainers
from benchmarks.rows import Row

PAIRS, LIMIT_MS = 30, 20.0


def milliseconds(folder: str, environ: dict[str, str], *options: str) -> float:
    """Run pytest on an empty test; return its wall time."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    began = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, env=environ)
    return (time.perf_counter() - began) * 1000


def measure() -> list[Row]:
    """Measure in turn."""
    rows = []
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as elsewhere:
        Path(folder, "test_nothing.py").write_text("def test_nothing(): pass\n")
        package = Path(elsewhere, "pytest_virtainers")  # not in the folder, where pytest would look for tests in it
        shutil.copytree(
            Path(pytest_virtainers.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__", "images")
        )
        plain = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        unwritten = {**plain, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(package.parent)}
        for how, environ in (("", plain), (", compiled each time", unwritten)):
            with_plugin, without = [], []
            for number in range(PAIRS + 1):
                pair = milliseconds(folder, environ, "-p", "no:virtainers"), milliseconds(folder, environ)
                if number:  # the first pair only warms the caches
                    without.append(pair[0])
                    with_plugin.append(pair[1])
            cost = tuple(loaded - bare for loaded, bare in zip(with_plugin, without, strict=True))
            rows.append(Row(f"the plugin in a run without VMs{how}", cost, "ms", "20 ms", (LIMIT_MS,), 1.0))
    return rows
