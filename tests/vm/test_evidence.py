"""Evidence and messages of failing tests, each with its true cause; and machines that resume from the evidence."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from pytest_virtainers.engine.docker.engine import DockerEngine
from pytest_virtainers.launching.launcher import Launcher
from tests.vm.processes import is_booting
from tests.vm.terminal import AT_TERMINAL

FAILING = """
import threading
import pytest

pytestmark = pytest.mark.virtainer("failing", ram="512M", disk="3G", cpus=2)


def test_failed_unit(vm):
    vm.run("systemd-run --no-block -p Type=oneshot --unit=broken sh -c 'echo no such port; exit 7'", sudo=True)
    vm.wait_for_unit("broken")


def test_panic(vm):
    vm.run("echo c >/proc/sysrq-trigger; sleep 600", sudo=True)


def test_out_of_memory(vm):
    # By default a kernel may look for room for minutes before it kills: as long as it finds a page to drop.
    vm.run("echo 1000 >/sys/kernel/mm/lru_gen/min_ttl_ms", sudo=True)
    vm.run("tail /dev/zero")


def test_full_disk(vm):
    full = vm.faults.fill_disk()
    full.__enter__()  # and so it is while the evidence is taken
    vm.run("head -c 1M /dev/zero >/var/tmp/file", sudo=True)


def test_dead_sshd(vm):
    vm.run("systemctl stop ssh.socket ssh; pkill -9 sshd; pkill -9 sshd-session; sleep 600", sudo=True)


# The one processor that stays online is busy at the highest priority, and the kernel reserves no time for others. A
# second busy one would only take time from other tests.
HANG = '''
for each in /sys/devices/system/cpu/cpu[1-9]*/online; do echo 0 >$each; done
for each in /sys/kernel/debug/sched/fair_server/cpu*/runtime; do echo 0 >$each; done
echo -1 >/proc/sys/kernel/sched_rt_runtime_us
exec chrt -f 99 sh -c 'while :; do :; done'
'''


def test_hung_kernel(vm):
    vm.run(HANG, sudo=True)


def test_powered_off(vm):
    vm.run("systemctl poweroff; sleep 600", sudo=True)


def test_killed(vm):
    vm.run("echo on disk >/home/debian/mark; sync")
    threading.Timer(1, vm.machine.container._api.kill, [vm.machine.container.id]).start()
    vm.run("sleep 600")


@pytest.mark.virtainer("slow", template=False, boot_timeout=15, user_data={"bootcmd": ["sleep 600"]})
def test_setup_that_takes_too_long(vm):
    pass


@pytest.fixture
def checked(vm):
    yield vm
    vm.run("echo at the end; exit 5")


def test_teardown(checked):
    pass


def test_that_passes(vm):
    vm.run("true")
"""
CAUSES = {
    "failed_unit": r"UnitFailed: unit broken of failing has failed .*\n.*\n?.*no such port",
    "panic": r"GuestPanic: failing: Kernel panic - not syncing: sysrq triggered crash",
    "out_of_memory": r"--- the guest's kernel\nE +Out of memory: Killed process \d+ \(tail\)",
    "full_disk": r"No space left on device",
    "dead_sshd": r"SSHError: failing: the SSH connection broke while",
    "hung_kernel": r"GuestStalled: failing: the guest hangs: it has not answered for \d+ s",
    "powered_off": r"VMGone: failing has ended: the guest switched itself off",
    "killed": r"VMGone: failing has ended: ",
    "setup_that_takes_too_long": r"BootTimeout: slow did not let us log in over SSH within 15 s",
    "teardown": r"CommandFailed: 'echo at the end; exit 5' on failing ended with exit code 5",
}
# From the test's start to its failure, without KVM on a busy host. There, a guest that does not answer counts as
# hanging after 50 s; the commands of the tests would take 600 s.
SECONDS = dict.fromkeys(CAUSES, 300.0) | {"panic": 45.0, "killed": 45.0}
WITHOUT_SSH = {"panic", "dead_sshd", "hung_kernel", "powered_off", "killed", "setup_that_takes_too_long"}


def section(output: str, name: str) -> str:
    """Return pytest's report of one failure."""
    return (
        re.split(r"\n_{3,} (?:ERROR at \w+ of )?test_", f"\n{output}")[0]
        if not name
        else next(
            part for part in re.split(r"\n_{3,} (?:ERROR at \w+ of )?test_", output)[1:] if part.startswith(name)
        )
    )


def test_each_failure_names_its_cause_and_leaves_its_evidence(
    pytester: pytest.Pytester, tmp_path: Path, engine: DockerEngine
) -> None:
    pytester.makepyfile(test_it=FAILING)
    result = pytester.runpytest_subprocess(
        *("-p", "no:cacheprovider", "--junitxml=report.xml", "--html=report.html", "--durations=0", "-vv")
    )
    output = result.stdout.str()
    result.assert_outcomes(failed=8, errors=2, passed=2)
    folders = {
        each.name.removeprefix("test_it-py-test_"): each
        for each in (pytester.path / "virtainer-artifacts").iterdir()
        if each.is_dir()
    }
    assert folders.keys() == CAUSES.keys()
    for seconds, name in re.findall(r"([\d.]+)s call +test_it\.py::test_(\w+)", output):
        assert float(seconds) < SECONDS.get(name, 300), f"{name} took {seconds} s"
    for name, cause in CAUSES.items():
        shown = section(output, name)
        assert re.search(cause, shown), f"{name}:\n{shown}"
        (folder,) = folders[name].iterdir()
        assert f"virtainers resume virtainer-artifacts/{folders[name].name}/{folder.name}" in shown
        assert "last lines of the console:\n  | " in shown
        manifest = json.loads((folder / "manifest.json").read_text())
        missing = set(manifest["missing"])
        assert missing == ({"journal.txt", "dmesg.txt"} if name in WITHOUT_SSH else set()) | (
            {"screenshot.png"} if name == "killed" else set()
        ), (name, manifest["missing"])
        wanted = {"console.log", "commands.log", "overlay.qcow2", "seed.iso", "ssh_key", "supervisor.log"}
        wanted |= {"screenshot.png", "journal.txt", "dmesg.txt"} - missing
        assert {each.name for each in folder.iterdir()} == wanted | {"manifest.json"}, name
        assert (folder / "overlay.qcow2").read_bytes()[:4] == b"QFI\xfb"
        assert folder.stat().st_mode & 0o077 == 0
        assert len(manifest["guest"]["digest"]) == 64
    assert "exit 5" in (folders["teardown"] / "failing" / "commands.log").read_text()
    properties = {
        (case.get("name"), each.get("value"))
        for case in ET.parse(pytester.path / "report.xml").iter("testcase")  # noqa: S314  (our own)
        for each in case.iter("property")
        if each.get("name") == "virtainer_artifacts"
    }
    assert ("test_panic", str(folders["panic"] / "failing")) in properties
    assert "failing: evidence" in (pytester.path / "report.html").read_text()
    assert not engine.api.containers(all=True, filters={"label": ["virtainers.vm=failing", "virtainers=vm"]})
    assert not [
        each
        for each in engine.api.volumes(filters={"label": "virtainers"})["Volumes"] or ()
        if "-failing-" in each["Name"]
    ]

    # The disk of the killed machine, in another machine.
    said = virtainers("resume", str(folders["killed"] / "failing"), "--", "cat", "mark")
    assert "on disk\n" in said
    flat = tmp_path / "flat.qcow2"
    virtainers("resume", str(folders["killed"] / "failing"), "--export", str(flat))
    info = json.loads(
        subprocess.run(["qemu-img", "info", "--output=json", str(flat)], capture_output=True, check=True).stdout
    )
    assert "backing-filename" not in info

    manifest_path = folders["teardown"] / "failing" / "manifest.json"
    manifest = json.loads(manifest_path.read_text())
    manifest["guest"]["digest"] = "0" * 64
    manifest_path.write_text(json.dumps(manifest))
    assert re.search(
        r"with sha256 0{64}, but the current \S+ has sha256 [0-9a-f]{64}",
        virtainers("resume", str(folders["teardown"] / "failing")),
    )


def virtainers(*words: str) -> str:
    command = [sys.executable, "-m", "pytest_virtainers.cli", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, stdin=subprocess.DEVNULL)
    return done.stdout + done.stderr


@pytest.mark.thorough
def test_a_booted_and_killed_machine_resumes_with_its_own_seed(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.virtainer("web", ram="512M", disk="3G", cpus=2, template=False)
        def test_it(vm):
            vm.run("cat /var/lib/cloud/data/instance-id >mark; sync")
            vm.machine.container._api.kill(vm.machine.container.id)
            vm.run("true")
        """
    )
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(failed=1)
    (folder,) = (pytester.path / "virtainer-artifacts").glob("*/web")
    missing = json.loads((folder / "manifest.json").read_text())["missing"]
    assert missing.keys() == {"screenshot.png", "journal.txt", "dmesg.txt"}
    said = virtainers("resume", str(folder), "--", "cat mark /var/lib/cloud/data/instance-id")
    ids = re.findall(r"^virtainers-[0-9a-f]{8}$", said, re.MULTILINE)
    assert len(ids) == 2, said
    assert len(set(ids)) == 1, "with a different seed, or none, it would have become another instance"


def begins_to_boot(engine: DockerEngine, *words: str) -> bool:
    """Run the command until its VM boots, then interrupt it; return whether that was reached."""
    command = [*AT_TERMINAL, sys.executable, "-m", "pytest_virtainers.cli", *words]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 300
        while not (booting := is_booting(engine, process.pid)) and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
    return booting and process.returncode == 130


def test_with_its_memory_a_machine_resumes_where_it_failed(pytester: pytest.Pytester, engine: DockerEngine) -> None:
    pytester.makepyfile(
        """
        import pytest

        pytestmark = pytest.mark.virtainer("web", ram="512M", disk="3G", cpus=2, scope="module")

        def test_it(vm):
            vm.popen("exec sleep 3333")
            vm.wait_until_succeeds("pgrep -x -f 'sleep 3333'")
            vm.run("echo only in memory >/dev/shm/file; cut -d. -f1 /proc/uptime >/dev/shm/uptime; false")

        def test_nothing_of_it_stays_in_the_container(vm):
            code, listed = vm.machine.container.run(["ls", vm.machine.folder])
            assert code == 0
            assert b"local_image.qcow2" in listed
            assert b"evidence" not in listed
        """
    )
    options = ("-p", "no:cacheprovider", "--virtainer-keep-memory")
    pytester.runpytest_subprocess(*options).assert_outcomes(passed=1, failed=1)
    (folder,) = (pytester.path / "virtainer-artifacts").glob("*/web")
    assert (folder / "memory.state").stat().st_size > 50 * 2**20
    look = "pgrep -x -f 'sleep 3333' >/dev/null && echo runs; cat /dev/shm/*; cut -d. -f1 /proc/uptime"
    said = virtainers("resume", str(folder), "--", look).splitlines()
    at = said.index("runs")
    assert said[at + 1] == "only in memory"
    assert 0 <= int(said[at + 3]) - int(said[at + 2]) < 600, "the same boot"

    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["machine"]["machine"]["qemu"] = "another"
    path.write_text(json.dumps(manifest))
    refused = virtainers("resume", "--trust", str(folder), "--", "true")
    assert f"the memory in {folder}/memory.state does not fit: " in refused
    assert f"virtainers resume --disk-only {folder}\n" in refused
    # The test above has a disk that boots to the end.
    assert begins_to_boot(engine, "resume", "--disk-only", str(folder), "--", "true")


@pytest.mark.thorough
def test_a_failed_template_leaves_evidence_and_nothing_in_the_store(
    pytester: pytest.Pytester, launcher: Launcher
) -> None:
    pytester.makepyfile(
        test_it="""
        import pathlib, time
        import pytest

        UNIQUE = str(time.time_ns())  # no template of an earlier run

        def begin(vm, name):
            pathlib.Path("test_it." + name).write_text(vm.machine.folder)
            vm.run("echo on disk >mark; sync; echo in memory >/dev/shm/file")

        def fail(vm, unique=UNIQUE):
            begin(vm, "fails")
            vm.run("echo not ready; exit 3")

        def die(vm, unique=UNIQUE):
            begin(vm, "dies")
            vm.machine.container._api.kill(vm.machine.container.id)
            vm.run("true")

        def interrupt(vm, unique=UNIQUE):
            begin(vm, "interrupted")
            raise KeyboardInterrupt

        pytestmark = pytest.mark.virtainer("web", ram="512M", disk="3G", cpus=2)

        @pytest.mark.virtainer(prepare=fail)
        def test_fails(vm): pass

        @pytest.mark.virtainer(prepare=die)
        def test_dies(vm): pass

        @pytest.mark.virtainer(run_commands=["exit 3"], files={"/unique": UNIQUE})
        def test_cloud_init(vm): pass

        @pytest.mark.virtainer(
            boot_timeout=10, user_data={"write_files": [{"path": "/slow", "content": UNIQUE + " in time"}]}
        )
        def test_slow(vm): pass

        @pytest.mark.virtainer(prepare=interrupt)
        def test_interrupted(vm): pass
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "--virtainer-keep-memory")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.assert_outcomes(errors=4)
    begun = [(pytester.path / f"test_it.{name}").read_text() for name in ("fails", "dies", "interrupted")]
    assert all(re.fullmatch(r"/store/\.scratch-[0-9a-f]{8}", each) for each in begun)
    with launcher.store.open() as store:
        assert not set(begun) & set(store.shell("ls -d /store/.scratch-* || true").split())

    no_ssh = {"journal.txt", "dmesg.txt"}
    missing = {"dies": {*no_ssh, "screenshot.png", "memory.state"}, "slow": no_ssh}
    for name, memory in (("fails", True), ("cloud_init", True), ("dies", False), ("slow", True)):
        (folder,) = (pytester.path / "virtainer-artifacts").glob(f"*_{name}/vm")
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["missing"].keys() == missing.get(name, set()), (name, manifest["missing"])
        assert (folder / "overlay.qcow2").read_bytes()[:4] == b"QFI\xfb"
        assert (folder / "seed.iso").stat().st_size > 0
        assert manifest["machine"]["memory"] is memory
        if name == "slow":
            assert "in time" in virtainers("resume", str(folder), "--", "cat", "/slow")
        elif name != "cloud_init":
            said = virtainers("resume", str(folder), "--", "cat mark /dev/shm/file")
            assert "on disk\n" in said
            assert ("in memory\n" in said) is memory


@pytest.mark.thorough
def test_memory_is_not_collected_with_added_devices(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.virtainer("web", ram="512M", disk="3G", cpus=2)
        def test_it(vm):
            vm.disks.remove(vm.disks.add("64M"))
            vm.nics.add()
            vm.run("echo on disk >mark; sync; false")
        """
    )
    options = ("-p", "no:cacheprovider", "--virtainer-keep-memory")
    pytester.runpytest_subprocess(*options).assert_outcomes(failed=1)
    (folder,) = (pytester.path / "virtainer-artifacts").glob("*/web")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["missing"] == {
        "memory.state": "evidence: nic2: added while the machine ran, and another one, which has no such device, "
        "could not resume from its memory"
    }
    assert manifest["machine"]["memory"] is False
    assert "on disk\n" in virtainers("resume", str(folder), "--", "cat", "mark")


def test_a_stalled_copy_of_the_disk_is_abandoned(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("from pytest_virtainers.evidence import collect; collect._IDLE_SECONDS = 0.5")
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.virtainer("web", ram="512M", disk="3G", cpus=2)
        def test_it(vm):
            vm.machine.container.run(["sh", "-c", "printf '#!/bin/sh\\nexec sleep 600' >/usr/local/bin/evidence"])
            vm.run("false")
        """
    )
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(failed=1)
    (folder,) = (pytester.path / "virtainer-artifacts").glob("*/web")
    missing = json.loads((folder / "manifest.json").read_text())["missing"]
    assert missing.keys() == {"overlay.qcow2"}
    assert re.fullmatch(r"EngineError: evidence in \S+ was silent for (0\.5|5) s", missing["overlay.qcow2"])
    assert (folder / "journal.txt").exists()


def test_core_dumps_are_collected_from_where_the_guest_writes_them(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.virtainer("web", ram="512M", disk="3G", cpus=2)
        def test_it(vm):
            vm.run("mkdir -m 1777 /var/tmp/cores; sysctl kernel.core_pattern=/var/tmp/cores/core.%e.%p", sudo=True)
            vm.run("ulimit -c unlimited; sleep 100 & kill -SEGV $!; wait $!")
        """
    )
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(failed=1)
    (folder,) = (pytester.path / "virtainer-artifacts").glob("*/web")
    assert json.loads((folder / "manifest.json").read_text())["missing"] == {}
    core, paths = sorted((folder / "cores").iterdir())
    assert re.fullmatch(r"core-1-core\.\w+\.\d+", core.name)
    assert paths.name == "list.txt"
    assert core.read_bytes()[:4] == b"\x7fELF"


def test_each_try_has_a_folder_and_the_oldest_are_removed(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_it="""
        import pytest

        @pytest.mark.virtainer("web", ram="512M", disk="3G", cpus=2)
        @pytest.mark.parametrize("word", ["a b"])
        def test_it(vm, word):
            vm.run("false")
        """
    )
    root = pytester.path / "virtainer-artifacts"
    for _ in range(2):
        pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(failed=1)
    first, second = sorted(each.name for each in root.iterdir() if each.is_dir())
    assert re.fullmatch(r"test_it-py-test_it-a-b-[0-9a-f]{8}", first)
    assert second == f"{first}.2"
    pytester.runpytest_subprocess("-p", "no:cacheprovider", "--virtainer-retention=1").assert_outcomes(failed=1)
    assert [each.name for each in root.iterdir() if each.is_dir()] == [f"{first}.3"]
    assert (root / ".gitignore").read_text() == "*\n"


@pytest.mark.thorough
def test_a_test_that_is_run_again_has_evidence_of_each_try(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_it="""
        import pytest

        tries = []

        @pytest.mark.virtainer("web", ram="512M", disk="3G", cpus=2)
        def test_it(vm):
            tries.append(vm)
            vm.run(f"echo on the disk of try {len(tries)} | tee try; sync; false")
        """
    )
    options = ("-p", "no:cacheprovider", "--reruns=1", "--junitxml=report.xml")
    result = pytester.runpytest_subprocess(*options)
    assert result.parseoutcomes() == {"failed": 1, "rerun": 1}
    *_, last = ET.parse(pytester.path / "report.xml").iter("testcase")  # noqa: S314  (our own)
    folders = [Path(each.get("value", "")) for each in last.iter("property")]
    assert [each.parent.name for each in folders] == ["test_it-py-test_it", "test_it-py-test_it.2"]
    for number, folder in enumerate(folders, 1):
        assert f"echo on the disk of try {number}" in (folder / "commands.log").read_text()
        assert f"on the disk of try {number}\n" in virtainers("resume", str(folder), "--", "cat", "try")


@pytest.mark.parametrize(("options", "answers"), [(["--virtainer-hold"], ["\n"]), (["--pdb"], ["vm.name\n", "q\n"])])
def test_a_failing_machine_is_held_until_enter_is_pressed(
    pytester: pytest.Pytester, options: list[str], answers: list[str]
) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.virtainer("web", ram="512M", disk="3G", cpus=2)
        def test_it(vm):
            vm.run("touch /tmp/held; false")
        """
    )
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--virtainer-keep=never", *options]
    process = subprocess.Popen(command, cwd=pytester.path, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    seen = b""

    def read_until(pattern: bytes) -> re.Match[bytes]:
        nonlocal seen
        deadline = time.monotonic() + 600
        while not (found := re.search(pattern, seen)):
            assert time.monotonic() < deadline, seen.decode()
            seen += os.read(master, 65536)
        return found

    ssh = read_until(rb"ssh: +(ssh [^\r\n]+)\r\n +console: +\w+ [^\r\n]*exec -it \w+ console\r\n")[1].decode()
    assert subprocess.run(f"{ssh} test -e /tmp/held", shell=True, check=False, timeout=120).returncode == 0  # noqa: S602
    for answer in answers:
        read_until(rb"press Enter to continue: " if "hold" in options[0] else rb"\(Pdb\) $")
        if answer != answers[0]:
            assert b"'web'" in seen
        seen = seen if "hold" in options[0] else seen.rpartition(b"(Pdb)")[0]
        os.write(master, answer.encode())
    read_until(rb"1 failed")
    process.wait(60)
    os.close(master)
