"""Programs that work on untrusted files, and their limits."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

import pytest
from virtainer import tools

if TYPE_CHECKING:
    from pathlib import Path

ROOMY = tools.Limits(seconds=60, written_bytes=2**20)


def test_limits_grow_with_the_file() -> None:
    assert tools.limits_for(0).seconds == 120
    assert tools.limits_for(10**10).seconds == 1120


@pytest.mark.parametrize(
    ("limits", "program", "words"),
    [
        (ROOMY._replace(seconds=0.2), "import time; time.sleep(60)", "was still at work after 0.2 s"),
        (
            ROOMY._replace(written_bytes=4096),
            "import os\nwhile True: os.write(1, b'x' * 1024)",
            "wrote more than 4 KiB",
        ),
        (ROOMY._replace(memory_bytes=2**28), "bytearray(2**29)", "failed (1): MemoryError"),
        (ROOMY, "raise SystemExit('it is broken')", "failed (1): it is broken"),
        (ROOMY, "raise SystemExit(2)", "failed (2): no output"),
    ],
)
def test_a_program_is_stopped_at_its_limits(limits: tools.Limits, program: str, words: str) -> None:
    began = time.monotonic()
    restored = "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_DFL)"  # Python ignores it
    with pytest.raises(tools.ToolError) as caught:
        tools.run_limited(sys.executable, "-c", f"{restored}\n{program}", limits=limits)
    assert words in str(caught.value)
    assert isinstance(caught.value, tools.Stopped) == ("was still" in words or "wrote more" in words)
    assert time.monotonic() - began < 50


def test_processor_time_is_limited() -> None:
    limit = "import resource; print(resource.getrlimit(resource.RLIMIT_CPU)); raise SystemExit(1)"
    with pytest.raises(tools.ToolError, match=r"\(8, 9\)"):
        tools.run_limited(sys.executable, "-c", limit, limits=ROOMY._replace(seconds=7.5))


def test_a_program_reads_files_that_were_opened_for_it(tmp_path: Path) -> None:
    (tmp_path / "disk").write_text("content")
    opened = os.open(tmp_path / "disk", os.O_RDONLY)
    program = f"raise SystemExit(open('/proc/self/fd/{opened}').read())"
    with pytest.raises(tools.ToolError, match="content"):
        tools.run_limited(sys.executable, "-c", program, limits=ROOMY, files=(opened,))
    os.close(opened)
