import subprocess
import sys

import pytest

from pytest_virtainers.support.timings import TOTAL, Record, part, phase, recording, table


def test_phases_outside_a_recording_are_ignored() -> None:
    record = Record("clone")
    with phase("before"):
        pass
    with recording(None), phase("nowhere"):
        pass
    assert record.seconds == {}


def test_phases_add_up_and_contain_inner_phases() -> None:
    record = Record("clone")
    for _ in range(2):
        with recording(record), phase("outer"), phase("inner"):
            pass
    assert list(record.seconds) == ["outer", TOTAL]


def test_nested_recordings_are_independent() -> None:
    clone, template = Record("clone"), Record("template")
    with recording(clone):
        with phase("template"), recording(template), phase("boot"):
            pass
        with phase("start"):
            pass
    assert list(clone.seconds) == ["template", "start", TOTAL]
    assert list(template.seconds) == ["boot", TOTAL]


def test_failing_phases_are_recorded() -> None:
    record = Record("boot")
    with pytest.raises(ZeroDivisionError), recording(record), phase("boot"):
        raise ZeroDivisionError
    assert list(record.seconds) == ["boot", TOTAL]
    assert not record.busy


def test_parts_are_shown_below_their_phase_and_not_added_to_the_total() -> None:
    record = Record("clone")
    with recording(record):
        with phase("wait"):
            pass
        part("some of it", 0.5)
    part("nowhere", 1.0)
    assert list(record.seconds) == ["wait", "  some of it", TOTAL]
    assert record.seconds[TOTAL] < 0.5
    assert "  some of it" + 8 * " " in "\n".join(table([record]))


def test_table_shows_medians_by_kind() -> None:
    records = [Record("clone", {"start": seconds, TOTAL: 2 * seconds}) for seconds in (0.1, 0.9, 0.2)]
    records.append(Record("boot", {"start": 1.0, "boot": 30.0, TOTAL: 31.0}))
    assert [line.split() for line in table(records)] == [
        ["clone", "boot"],
        ["VMs", "3", "1"],
        ["start", "0.200", "s", "1.000", "s"],
        ["boot", "30.000", "s"],
        ["total", "0.400", "s", "31.000", "s"],
    ]


def test_the_module_does_not_import_statistics() -> None:
    program = "import sys, pytest_virtainers.support.timings; print('statistics' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
        == "False\n"
    )
