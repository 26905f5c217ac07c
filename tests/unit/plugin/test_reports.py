"""Failing tests: evidence folders, reports, and the end of VMs."""

from __future__ import annotations

import os
import re
import stat
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_virtainers.plugin import reports, session
from tests.unit.fake_machine import machine

READABLE = {
    "tests/test_a.py::test_b": "tests-test_a-py-test_b",
    "test_a.py::TestB::test_c": "test_a-py-TestB-test_c",
}
ALIKE = [
    "a/b.py::c",
    "a.b.py::c",
    "a_b.py::c",
    "a/b/py.py::c",
    "a/b.py::py::c",
    "a.py::py::c",
    "a/py.py::c",
    "a.py::b::py::c",
    "a/py/b.py::c",
    "a/b.py::c[x]",
    "a/b.py::c[y]",
    "a/b.py::c[]",
    "a/b.py::c[ä]",
    "a/b.py::c[../..]",
    "a/b.py::" + "c" * 200,
    "a/b.py::" + "c" * 201,
]


@pytest.mark.parametrize("node_id", READABLE)
def test_a_plain_id_gives_a_readable_slug(node_id: str) -> None:
    assert reports.slug(node_id) == READABLE[node_id]


def test_slugs_are_unique_and_safe_file_names() -> None:
    slugs = {reports.slug(each) for each in ALIKE}
    assert len(slugs) == len(ALIKE)
    for each in slugs:
        assert re.fullmatch(r"[A-Za-z0-9_-]{1,110}", each), "no dot, which precedes the number of a try"
    assert reports.slug("a/b.py::c[x y]").startswith("a-b-py-c-x-y-")


def test_each_try_has_a_folder_and_retention_removes_the_oldest(tmp_path: Path) -> None:
    for name in ("test_a", "test_a", "test_ab", "test_a-b", "test_a"):
        reports.next_try(tmp_path, name, None)
    kept = {"test_ab", "test_a-b", "test_a.txt", "test_a.2.old"}
    (tmp_path / "test_a.txt").touch()
    (tmp_path / "test_a.2.old").mkdir()
    assert {each.name for each in tmp_path.iterdir()} == {"test_a", "test_a.2", "test_a.3"} | kept
    (tmp_path / "test_a.10").mkdir()
    assert reports.next_try(tmp_path, "test_a", 2).name == "test_a.11"
    assert {each.name for each in tmp_path.iterdir()} == {"test_a.10", "test_a.11"} | kept
    assert reports.next_try(tmp_path, "test_a", 1).name == "test_a.12"
    assert {each.name for each in tmp_path.iterdir()} == {"test_a.12"} | kept


def item(folder: Path) -> Any:
    settings = SimpleNamespace(artifacts="kept", retention=None)
    config = SimpleNamespace(rootpath=folder, stash={session.SETTINGS_KEY: settings})
    return SimpleNamespace(config=config, nodeid="test_a.py::test_b", stash={})


def test_vms_with_the_same_name_have_separate_folders(tmp_path: Path) -> None:
    one = item(tmp_path)
    made = [reports.new_folder(one, machine("web")) for _ in range(2)]
    assert [str(each.relative_to(tmp_path)) for each in made] == [
        "kept/test_a-py-test_b/web",
        "kept/test_a-py-test_b/web-2",
    ]
    assert (tmp_path / "kept/.gitignore").read_text() == "*\n"


def test_a_folder_created_by_another_worker_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = Path.mkdir

    def mkdir(path: Path, *arguments: Any, **named: Any) -> None:
        if path.name == "kept" and not path.exists():
            make(path)  # created by another worker
        make(path, *arguments, **named)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    assert reports.new_folder(item(tmp_path), machine()).is_dir()


CONFTEST = """
    import pytest
    from pytest_virtainers.plugin import session
    from tests.unit.fake_machine import FakeLauncher

    def pytest_configure(config):
        config.stash[session._LAUNCHER_KEY] = FakeLauncher()

    def pytest_runtest_logreport(report):
        if report.when == "teardown":
            print(f"\\nafter {report.nodeid.rpartition('::')[2]}: {FakeLauncher.up} up")

    @pytest.fixture
    def bad_end(vm):
        yield
        raise OSError("at the end")
"""
SUITE = """
    import pytest

    def test_passes(vm): pass

    def test_fails(vm):
        with vm.log.entry("make test", "debian") as entry:
            entry.outcome = "exit 2"
        with vm.log.entry("true", "debian") as entry:
            entry.outcome = "exit 0"
        vm.container.stdout += b"Out of memory: Killed process 7 (cc)\\r\\nlast line\\r\\n"
        assert not "of the test"

    def test_bad_end(bad_end): pass

    def test_lost(vm_factory): vm_factory("lost")

    def test_tolerated_loss(vm_factory):
        with pytest.raises(TimeoutError):
            vm_factory("lost")

    @pytest.mark.xfail
    def test_expected(vm): assert 0

    @pytest.mark.skip
    def test_skipped(vm): pass
"""


@pytest.fixture
def run(pytester: pytest.Pytester, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in ("VIRTAINER_KEEP", "VIRTAINER_ARTIFACTS", "VIRTAINER_CAPTURE", "VIRTAINER_ENGINE"):
        monkeypatch.delenv(name, raising=False)
    # pytest has added our root to the path of this process; workers of pytest-xdist do not have it.
    pytester.makeconftest(f"import sys\nsys.path.insert(0, {str(pytestconfig.rootpath)!r})\n{dedent(CONFTEST)}")

    def run(source: str, *options: str) -> pytest.RunResult:
        pytester.makepyfile(test_it=source)
        return pytester.runpytest_inprocess("-p", "no:cacheprovider", *options)

    return run


def folders(pytester: pytest.Pytester) -> list[str]:
    found = (pytester.path / "virtainer-artifacts").glob("*/*/manifest.json")
    return sorted(str(each.parent.relative_to(pytester.path / "virtainer-artifacts")) for each in found)


def test_reports_of_failing_tests_show_their_evidence(pytester: pytest.Pytester, run: Any) -> None:
    result = run(SUITE, "--junitxml=report.xml", "-s")
    result.assert_outcomes(passed=3, failed=2, errors=1, xfailed=1, skipped=1)
    assert folders(pytester) == [
        "test_it-py-test_bad_end/vm",
        "test_it-py-test_fails/vm",
        "test_it-py-test_lost/lost",
    ]
    result.stdout.fnmatch_lines(
        [
            "*- virtainer vm -*",
            "evidence: virtainer-artifacts/test_it-py-test_fails/vm",
            "to resume it: virtainers resume virtainer-artifacts/test_it-py-test_fails/vm",
            "last failed command: * exit 2 * debian$ make test",
            "Out of memory: Killed process 7 (cc)",
            "last lines of the console:",
            "  | login:",
            "  | Out of memory: Killed process 7 (cc)",
            "  | last line",
        ]
    )
    properties = {
        (case.get("name"), each.get("name"), Path(each.get("value", "")).name)
        for case in ET.parse(pytester.path / "report.xml").iter("testcase")  # noqa: S314  (our own)
        for each in case.iter("property")
    }
    assert properties == {
        ("test_fails", "virtainer_artifacts", "vm"),
        ("test_bad_end", "virtainer_artifacts", "vm"),
        ("test_lost", "virtainer_artifacts", "lost"),
    }


def test_vms_end_with_their_test_including_failed_launches(run: Any) -> None:
    result = run(SUITE, "-s")
    result.stdout.fnmatch_lines(
        [
            "after test_passes: [[][]] up",
            "after test_fails: [[][]] up",
            "after test_bad_end: [[]'vm'[]] up",  # it stays for inspection
            "after test_lost: [[][]] up",
            "after test_tolerated_loss: [[][]] up",
            "after test_expected: [[][]] up",
        ]
    )


KERNEL = """
    import pytest

    PANIC = b"Kernel panic - not syncing: sysrq\\r\\n" + 20 * b"Call trace\\r\\n"

    def test_panic(vm):
        vm.container.stdout += PANIC
        assert not "of the test"

    @pytest.mark.xfail(strict=True)
    def test_without_exception(vm):
        vm.container.stdout += b"Out of memory: Killed process 7 (cc)\\r\\n"

    def test_with_the_message(vm):
        vm.container.stdout += PANIC
        raise OSError("vm: Kernel panic - not syncing: sysrq. More")

    def test_passes(vm):
        vm.container.stdout += PANIC
"""


@pytest.mark.parametrize("options", [(), ("-n1",), ("--virtainer-keep=never",), ("--tb=native",)], ids=str)
def test_kernel_messages_are_added_to_the_failure(
    options: tuple[str, ...], pytester: pytest.Pytester, run: Any
) -> None:
    result = run(KERNEL, "--junitxml=report.xml", *options)
    result.assert_outcomes(passed=1, failed=3)
    failures = {
        case.get("name"): "".join(each.text or "" for each in case.iter("failure"))
        for case in ET.parse(pytester.path / "report.xml").iter("testcase")  # noqa: S314  (our own)
    }
    message = r"of the test[\s\S]*the kernel of vm -+\nKernel panic - not syncing: sysrq$"
    assert re.search(message, failures["test_panic"])
    result.stdout.fnmatch_lines(["[[]XPASS(strict)[]]*", "the kernel of vm:", "Out of memory: Killed process 7 (cc)"])
    assert "the kernel of vm" not in failures["test_with_the_message"], "not repeated"


BLAME = """
    from datetime import UTC, datetime
    import pytest
    from pytest_virtainers.vm.log import Entry

    def serve(machine):
        machine.log.entries.append(Entry("serve", "debian", datetime.now(UTC)))

    def spoil(machine):
        with machine.log.entry("make trouble", "debian") as entry:
            entry.outcome = "exit 2"
        machine.container.stdout += b"Out of memory: Killed process 7 (cc)\\r\\n" + 20 * b"x\\r\\n"
        serve(machine)

    @pytest.mark.virtainer(scope="module")
    def test_spoils(vm, session_vm):
        spoil(vm)
        spoil(session_vm)

    @pytest.mark.virtainer(scope="module")
    def test_vm(vm):
        serve(vm)
        assert 0

    def test_session_vm(session_vm): assert 0
"""


def test_failures_of_other_tests_are_not_reported(run: Any) -> None:
    result = run(BLAME)
    result.assert_outcomes(passed=1, failed=2)
    assert result.stdout.str().count("evidence: ") == 2
    for word in ("last failed command", "Out of memory"):
        result.stdout.no_fnmatch_line(f"*{word}*")


@pytest.mark.parametrize("fixture", ["vm", "session_vm"])
def test_failures_of_the_test_in_a_shared_vm_are_reported(fixture: str, run: Any) -> None:
    source = f"{BLAME}\n    def test_own({fixture}):\n        spoil({fixture})\n        assert 0\n"
    run(source, "-k", "test_spoils or test_own").stdout.fnmatch_lines(
        [
            "last failed command: * exit 2 * debian$ make trouble",
            "Out of memory: Killed process 7 (cc)",
        ]
    )


def test_an_earlier_panic_is_shown_with_the_evidence(run: Any) -> None:
    run(KERNEL, "-k", "test_panic").stdout.fnmatch_lines(
        ["evidence: *", "Kernel panic - not syncing: sysrq", "last lines of the console:"]
    )


def test_keep_selects_the_tests_that_leave_evidence(pytester: pytest.Pytester, run: Any) -> None:
    run(SUITE, "--virtainer-keep=never")
    assert folders(pytester) == []
    run(SUITE, "--virtainer-keep=always", "--virtainer-artifacts=virtainer-artifacts")
    assert [each for each in folders(pytester) if "passes" in each or "expected" in each] == [
        "test_it-py-test_expected/vm",
        "test_it-py-test_passes/vm",
    ]


def captures(pytester: pytest.Pytester) -> dict[str, float]:
    """Return the start time of each capture by path."""
    root = pytester.path / "virtainer-artifacts"
    return {str(each.relative_to(root)): float(each.read_text()) for each in sorted(root.glob("**/*.pcap"))}


def test_captures_of_failing_tests_are_written_on_request(pytester: pytest.Pytester, run: Any) -> None:
    begun = time.time()
    result = run(SUITE, "--virtainer-keep=never", "--virtainer-capture=failed")
    kept = captures(pytester)
    assert [*kept] == [f"test_it-py-test_{name}/default.pcap" for name in ("bad_end", "fails", "lost")]
    result.stdout.fnmatch_lines(
        [
            "*- virtainer network default -*",
            "capture: virtainer-artifacts/test_it-py-test_fails/default.pcap",
        ]
    )
    result.stdout.no_fnmatch_line("*network empty*")
    assert begun < kept["test_it-py-test_fails/default.pcap"] < kept["test_it-py-test_bad_end/default.pcap"]
    run(SUITE)
    assert captures(pytester) == kept, "none without the option"


def test_captures_of_all_tests_are_written_on_request(pytester: pytest.Pytester, run: Any) -> None:
    run(SUITE, "--virtainer-capture=always", "-k", "passes or expected or skipped")
    names = [f"test_it-py-test_{name}/default.pcap" for name in ("expected", "passes")]
    assert [*captures(pytester)] == names


def test_evidence_and_captures_are_private(pytester: pytest.Pytester, run: Any) -> None:
    before = os.umask(0)
    try:
        run(SUITE, "--virtainer-capture=failed")
        run(SUITE, "--virtainer-capture=failed")
    finally:
        os.umask(before)
    root = pytester.path / "virtainer-artifacts"
    folders = [each for each in root.rglob("*") if each.is_dir()]
    assert len(folders) == 2 * 2 * 3
    assert {stat.S_IMODE(each.stat().st_mode) for each in folders} == {0o700}
    assert {stat.S_IMODE(each.stat().st_mode) for each in root.rglob("*.pcap")} == {0o600}


def test_a_link_in_place_of_a_capture_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "default.pcap").symlink_to("victim")
    with reports.replace_private(tmp_path / "default.pcap") as file:
        file.write(b"frames")
    assert (tmp_path / "victim").read_text() == "mine"
    assert (tmp_path / "default.pcap").read_bytes() == b"frames"


HOSTILE = r"""
    EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\x9dx\x9c\u202e\u2028\r"

    def test_it(vm):
        vm.name = "web"
        with vm.log.entry(f"make {EVIL}", "debian") as entry:
            entry.outcome = f"exit {EVIL}"
        vm.container.stdout += f"Out of memory: Killed process 7 (c{EVIL}c)\r\nl{EVIL}\r\n".encode()
        vm.picture = OSError(EVIL)
        assert not "of the test"
"""


@pytest.mark.parametrize("options", [("-s",), ("-n1",), ("--tb=native",)], ids=str)
def test_reports_escape_control_sequences(options: tuple[str, ...], pytester: pytest.Pytester, run: Any) -> None:
    result = run(HOSTILE, "--junitxml=report.xml", "--html=report.html", "--self-contained-html", *options)
    result.assert_outcomes(failed=1)
    shown = result.stdout.str() + result.stderr.str()
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e]", shown)
    assert r"Killed process 7 (c\x1b]0;owned\x07\x1b[2J" in shown, "escaped, and readable"
    assert r"missing: screenshot.png: OSError: \x1b]0;owned\x07\x1b[2J\x9b31m\x9dx\x9c\u202e" in shown
    failure = ET.parse(pytester.path / "report.xml").find(".//failure")  # noqa: S314  (our own)
    assert failure is not None
    assert "the kernel of web" in (failure.text or "")
    assert "owned" in (pytester.path / "report.html").read_text()
    assert "\x1b" not in (pytester.path / "report.html").read_text()


def test_a_failing_capture_is_reported_and_others_are_written(pytester: pytest.Pytester, run: Any) -> None:
    source = """
        def test_it(vm, vm_factory):
            vm_factory("broken")
            assert not "of the test"
    """
    result = run(source, "--virtainer-capture=failed")
    result.stdout.fnmatch_lines(["E       AssertionError: assert not 'of the test'"])
    result.stdout.fnmatch_lines(["*- virtainer network default -*", "capture: *"])
    result.stdout.fnmatch_lines(["*- virtainer network broken -*", "the capture could not be written: OSError: no*"])
    assert [*captures(pytester)] == ["test_it-py-test_it/default.pcap"]


def test_an_unwritable_folder_does_not_hide_the_failure(pytester: pytest.Pytester, run: Any) -> None:
    (pytester.path / "a-file").touch()
    result = run(SUITE, "--virtainer-artifacts=a-file/folder")
    result.assert_outcomes(passed=3, failed=2, errors=1, xfailed=1, skipped=1)
    result.stdout.fnmatch_lines(["E       AssertionError: assert not 'of the test'"])
    result.stdout.fnmatch_lines(["the evidence of vm could not be collected: NotADirectoryError: *"])


@pytest.mark.parametrize("broken", ["()", "('--memory',)"], ids=["disk", "memory"])
def test_missing_pieces_are_reported_and_resume_requires_a_disk(broken: str, run: Any) -> None:
    result = run(
        f"""
        def test_it(vm):
            vm.container.evidence = {{{broken}: (1, b"evidence: no space left"), ("--memory",): (1, b"no room")}}
            assert 0
        """,
        "--virtainer-keep-memory",
    )
    disk = ["missing: overlay.qcow2: VirtainerError: evidence: no space left"] if broken == "()" else []
    resume = [] if disk else ["to resume it: virtainers resume *"]
    result.stdout.fnmatch_lines(
        ["evidence: *", "missing: memory.state: no room", *disk, *resume, "last lines of the console:"],
        consecutive=True,
    )


def test_a_timeout_or_a_vm_that_does_not_close_does_not_hide_the_failure(run: Any) -> None:
    result = run(
        """
        import pytest

        def test_it(vm):
            vm.picture = pytest.fail.Exception("Timeout >1s")
            vm.refuses_to_go = True
            assert not "of the test"

        def test_after_it(): pass
        """
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            "E       AssertionError: assert not 'of the test'",
            "the evidence of vm could not be collected: Failed: Timeout >1s",
        ]
    )
    result.stdout.no_fnmatch_line("*INTERNALERROR*")


def test_each_try_of_a_repeated_test_has_its_own_vm_and_folder(pytester: pytest.Pytester, run: Any) -> None:
    pytester.syspathinsert()
    pytester.makepyfile(
        again="""
        from _pytest.runner import runtestprotocol

        def pytest_runtest_protocol(item, nextitem):
            for _ in range(2):
                item._initrequest()
                runtestprotocol(item, nextitem=nextitem)
            return True
        """
    )
    result = run("def test_it(vm): assert 0", "-p", "again")
    assert folders(pytester) == ["test_it-py-test_it.2/vm", "test_it-py-test_it/vm"]
    assert result.stdout.str().count("evidence: ") == 2, "each try reports only its own VM"


FLAKY = """
    import pytest

    tries = {}

    @pytest.fixture(scope="module", autouse=True)
    def end():  # a fixture shared by the tries
        yield

    @pytest.mark.parametrize("number", range(4))
    def test_it(vm, number):
        tries[number] = tries.get(number, 0) + 1
        vm.container.stdout += f"try {tries[number]} of {number}".encode()
        assert number % 2 and tries[number] == 2
"""


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["one process", "xdist"])
def test_each_try_of_rerunfailures_has_its_own_evidence(
    workers: tuple[str, ...], pytester: pytest.Pytester, run: Any
) -> None:
    pytest.importorskip("pytest_rerunfailures")
    result = run(FLAKY, "--reruns=1", "--junitxml=report.xml", *workers)
    assert {name: count for name, count in result.parseoutcomes().items() if "warning" not in name} == {
        "passed": 2,
        "failed": 2,
        "rerun": 4,
    }
    consoles = {}  # by test; the last report has the folders of all tries
    for case in ET.parse(pytester.path / "report.xml").iter("testcase"):  # noqa: S314  (our own)
        texts = [Path(each.get("value", ""), "console.log").read_text() for each in case.iter("property")]
        consoles[case.get("name")] = [each.splitlines()[-1] for each in texts]
    assert consoles == {
        "test_it[0]": ["try 1 of 0", "try 2 of 0"],
        "test_it[1]": ["try 1 of 1"],
        "test_it[2]": ["try 1 of 2", "try 2 of 2"],
        "test_it[3]": ["try 1 of 3"],
    }
    assert len(folders(pytester)) == 6
    for number in (0, 2):
        assert f"  | try 2 of {number}\n" in result.stdout.str()
        assert f"  | try 1 of {number}\n" not in result.stdout.str(), "each try reports only its own VM"


SHARED = """
    import pytest

    tries = []

    @pytest.mark.virtainer(scope="module")
    def test_it(vm):
        tries.append(vm)
        vm.runs = False
        assert len(tries) == 2
"""


def test_a_shared_vm_replaced_by_a_further_try_ends_with_its_scope(pytester: pytest.Pytester, run: Any) -> None:
    pytest.importorskip("pytest_rerunfailures")
    pytester.makepyfile(test_later="def test_later(): pass")
    result = run(SHARED, "--reruns=1", "-s")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["after test_it: [[][]] up", "after test_later: *"])


def test_self_contained_html_reports_show_the_screen(pytester: pytest.Pytester, run: Any) -> None:
    pytest.importorskip("pytest_html")
    result = run(SUITE, "--html=report.html", "--self-contained-html", "-W", "error")
    result.assert_outcomes(passed=3, failed=2, errors=1, xfailed=1, skipped=1)
    report = (pytester.path / "report.html").read_text()
    assert "vm: evidence" in report
    assert "data:image/png;base64,iVBORw==" in report


def test_evidence_does_not_need_other_plugins(pytester: pytest.Pytester, run: Any) -> None:
    plugins = ("html", "junitxml", "debugging", "capture", "terminalreporter")
    result = run(SUITE, *(word for name in plugins for word in ("-p", f"no:{name}")))
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert len(folders(pytester)) == 3


HELD = """virtainers: {name} of test_it.py::{test} is up
  ssh:     ssh {name}
  console: docker exec -it {name} console
"""


@pytest.mark.parametrize("keep", ["never", "failed"])
def test_vms_are_held_after_a_failure_in_any_phase(keep: str, run: Any) -> None:
    result = run(SUITE, "--virtainer-hold", f"--virtainer-keep={keep}")
    for name, test in (("vm", "test_fails"), ("vm", "test_bad_end"), ("lost", "test_lost")):
        assert HELD.format(name=name, test=test) in result.stdout.str()
    assert result.stdout.str().count(" is up\n") == 3
    assert "there is no terminal to press Enter at; not waiting" in result.stdout.str()


def test_a_failing_ssh_command_is_not_an_internal_error(run: Any) -> None:
    result = run(
        """
        def test_it(vm):
            class Full(type(vm)):
                @property
                def ssh_command(self):
                    raise OSError("No space left on device")

            vm.__class__ = Full
            assert not "of the test"
        """,
        "--virtainer-hold",
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["  ssh:     (No space left on device)", "  console: docker exec -it vm console"])


def test_a_failing_test_without_vms_imports_nothing_heavy(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
        import sys

        def pytest_unconfigure():
            heavy = ("docker", "paramiko", "tenacity", "requests", "pytest_virtainers.evidence.collect")
            print("heavy:", [each for each in heavy if each in sys.modules])
        """
    )
    pytester.makepyfile("def test_it(): assert 0")
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "--virtainer-keep-memory", "--virtainer-hold")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["heavy: [[][]]"])
    assert not (pytester.path / "virtainer-artifacts").exists()
