"""The memory that a call leaves allocated."""

import gc
import tracemalloc
from collections.abc import Callable


def allocated(act: Callable[[], object]) -> int:
    """Return the bytes that Python has allocated during a call and not freed; its result counts."""
    gc.collect()
    tracemalloc.start()
    try:
        kept = act()
        gc.collect()
        size, _ = tracemalloc.get_traced_memory()
        del kept
        return size
    finally:
        tracemalloc.stop()
