"""What the installed plugin costs a pytest run that does not use it: pairs of runs, with and without it.

    python -m benchmarks.plugin_load [PAIRS]

Target: at most 20 ms.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def seconds(folder: str, *options: str) -> float:
    """Run pytest on an empty test; give its wall time in seconds."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "test_nothing.py").write_text("def test_nothing(): pass\n")
        without_plugin, with_plugin, differences = [], [], []
        for number in range(pairs + 1):
            without, loaded = seconds(folder, "-p", "no:virtainers"), seconds(folder)
            if number:  # the first pair only warms the caches
                without_plugin.append(without)
                with_plugin.append(loaded)
                differences.append(loaded - without)
    floor, cost = statistics.median(without_plugin), statistics.median(differences)
    print(
        f"without the plugin {floor * 1000:.1f} ms, with it {statistics.median(with_plugin) * 1000:.1f} ms (medians)"
    )
    print(f"median of {pairs} paired differences: {cost * 1000:.1f} ms, ratio {1 + cost / floor:.3f}")


if __name__ == "__main__":
    main()
