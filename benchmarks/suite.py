"""Pytest runs whose tests each take a fresh VM for one command: seconds per test, and until the first command.

    VIRTAINER_ENGINE=docker python -m benchmarks.suite [TESTS]

Targets with a template in the store: 2.5 s per test, 1.5 s with prefetch; 5 s from the start of pytest to the
end of its first command.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_SUITE = """
import time
from pathlib import Path
import pytest

@pytest.mark.parametrize("number", range({tests}))
def test_fresh(vm, number):
    vm.run("true")
    with Path("times").open("a") as file:
        print(time.time(), file=file)
"""


def run(folder: str, prefetch: str) -> tuple[float, float]:
    """Run the suite; give the seconds per test, and those until the first command had returned."""
    times = Path(folder, "times")
    times.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--virtainer-prefetch={prefetch}"]
    began = time.time()
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, env=os.environ)
    taken, stamps = time.time() - began, times.read_text().split()
    return taken / len(stamps), float(stamps[0]) - began


def main() -> None:
    """Measure and print."""
    tests = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    with tempfile.TemporaryDirectory() as folder:
        suite = Path(folder, "test_suite.py")
        suite.write_text(_SUITE.format(tests=1))
        run(folder, "off")  # makes the template, if there is none
        _, first = run(folder, "off")
        suite.write_text(_SUITE.format(tests=tests))
        alone, _ = run(folder, "off")
        ahead, _ = run(folder, "on")
    print(f"from the start of pytest to the end of its first command, template in the store: {first:.2f} s")
    print(f"{tests} tests, each with a fresh VM: {alone:.2f} s per test; with prefetch {ahead:.2f} s per test")
    print(f"ratio {ahead / alone:.2f}")


if __name__ == "__main__":
    main()
