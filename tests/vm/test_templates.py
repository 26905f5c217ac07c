"""Clones of a booted template: what is their own, what they share, and bad templates."""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from benchmarks.idle import share
from pytest_virtainers import VM, Arguments, GuestPanic, UsageError, VMFactory
from pytest_virtainers.config.settings import Settings
from pytest_virtainers.config.spec import Spec
from pytest_virtainers.engine.docker.engine import DockerEngine
from pytest_virtainers.launching.build import build_launcher
from pytest_virtainers.launching.launcher import Launcher
from pytest_virtainers.launching.templates import Template
from pytest_virtainers.ssh import client, resumable
from pytest_virtainers.store.volume import open_store
from pytest_virtainers.support.progress import SILENT
from pytest_virtainers.vm.supervisor_events import parse
from tests.vm.shapes import SMALL, spec


@pytest.fixture(scope="module")
def pair(launcher: Launcher) -> Iterator[tuple[VM, VM]]:
    """Launch two clones of one template at the same time."""
    first, second = launcher.launch(spec("first")), launcher.launch(spec("second"))
    yield first, second
    launcher.discard(first)
    launcher.discard(second)


def test_a_clone_has_not_booted(pair: tuple[VM, VM]) -> None:
    for vm in pair:
        assert "Linux version" not in vm.console.text


def test_clones_have_their_own_hostnames(pair: tuple[VM, VM]) -> None:
    for vm in pair:
        assert vm.run("hostname; cat /etc/hostname; getent hosts $(hostname) >/dev/null && echo known").stdout == (
            f"{vm.name}\n{vm.name}\nknown\n"
        )


def seconds_behind(vm: VM) -> float:
    """Return how much a guest's clock is behind, at least; it is never ahead of the host's.

    It is set by the supervisor's answer, which may be late on a busy host.
    """
    before = time.time()
    guest = float(vm.run("date +%s.%N").stdout)
    assert before - 5 < guest <= time.time() + 0.05
    return before - guest


def test_clones_have_the_time_of_the_host(launcher: Launcher, pair: tuple[VM, VM]) -> None:
    behind = [seconds_behind(vm) for vm in pair]
    while min(behind) > 0.05 and len(behind) < 8:
        vm = launcher.launch(spec("late"))
        behind.append(seconds_behind(vm))
        launcher.discard(vm)
    assert min(behind) <= 0.05, behind
    # As the supervisor measured it, too.
    events = [parse(line) for vm in pair for line in bytes(vm.machine.container.stderr).splitlines()]
    offsets_ms = [each["clock_ms"] for each in events if each and each["event"] == "helper-done"]
    assert len(offsets_ms) >= 2
    assert all(-5000 < each < 50 for each in offsets_ms), offsets_ms


def test_an_idle_clone_uses_little_processor_time(pair: tuple[VM, VM]) -> None:
    # With an HPET it took 4.5 %. On a busy host the guest may still be finishing work of an earlier test.
    shares = [share(pair[0].machine.container, 5)]
    while min(shares) >= 0.02 and len(shares) < 12:
        shares.append(share(pair[0].machine.container, 5))
    assert min(shares) < 0.02, shares


def test_an_idle_guest_has_no_useless_timers(pair: tuple[VM, VM]) -> None:
    asked = """
        cat /sys/devices/system/clocksource/clocksource0/current_clocksource /proc/sys/vm/compaction_proactiveness
        systemctl is-enabled systemd-timesyncd; grep -o tsc=nowatchdog /proc/cmdline"""
    assert pair[0].run(asked, check=False).stdout.split() == ["tsc", "0", "disabled", "tsc=nowatchdog"]


def test_clones_have_different_random_numbers(launcher: Launcher) -> None:
    # Read first, and by a new program: the kernel's generator must have been reseeded.
    read = "python3 -c 'import os; print(os.getrandom(16).hex())'; cat /proc/sys/kernel/random/uuid"
    drawn = set()
    for number in range(2):
        vm = launcher.launch(spec(f"random-{number}"))
        drawn |= set(vm.run(read).stdout.split())
        launcher.discard(vm)
    assert len(drawn) == 4


def test_clones_get_a_fresh_identity_on_request(launcher: Launcher) -> None:
    seen = set()
    for number in range(2):
        vm = launcher.launch(spec(f"fresh-{number}", identity="fresh"))
        facts = vm.run("cat /etc/machine-id; cut -d' ' -f2 /etc/ssh/ssh_host_*.pub").stdout.split()
        assert facts[1] == vm.machine.keys.host.public.split()[1], "the expected key, and the only one"
        assert vm.run("journalctl -q -b -n 1", sudo=True).stdout, "earlier log entries are shown"
        seen |= set(facts)
        assert subprocess.run([*shlex.split(vm.access.ssh_command), "true"], timeout=120, check=False).returncode == 0
        launcher.discard(vm)
    assert len(seen) == 4
    assert all(len(each) in {32, 68} for each in seen), seen


def session_of(vm: VM) -> str:
    return vm.run("echo $SSH_CONNECTION").stdout.split()[0]


def test_clones_resume_the_session_of_their_template(pair: tuple[VM, VM]) -> None:
    for vm in pair:
        assert session_of(vm) == "UNKNOWN", "sshd does not know the other end of its virtio-serial port"
        vm.machine.ssh.current.transport.renegotiate_keys()  # type: ignore[union-attr]
        assert vm.run("echo works").stdout == "works\n"
        holders = "for each in /proc/[0-9]*; do ls -l $each/fd | grep -q /dev/vport && cat $each/comm; done"
        held_by = set(vm.run(holders, sudo=True, check=False).stdout.split())
        assert "cat" in held_by
        assert not {name for name in held_by if name.startswith("sshd")}, "it would lose messages"


def test_without_a_route_the_session_resumes_through_an_exec_stream(
    launcher: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dial(*_: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr(client, "dial", dial)
    vm = launcher.launch(spec("far"))
    assert session_of(vm) == "UNKNOWN"
    launcher.discard(vm)


@pytest.mark.parametrize("lack", ["its keys", "an algorithm"])
def test_without_a_working_session_a_login_is_made(launcher: Launcher, lack: str) -> None:
    wanted = spec("alone")
    template = place_of(launcher, wanted)
    assert template.session is not None
    if lack == "its keys":
        broken = replace(template.session, keys=dict.fromkeys(template.session.keys, "00" * 64))
    else:
        broken = replace(template.session, facts={**template.session.facts, "remote_cipher": "of-another-paramiko"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launcher.templates, "ensure", lambda *_: replace(template, session=broken))
        vm = launcher.launch(wanted)
    assert session_of(vm) not in {"UNKNOWN", ""}
    launcher.discard(vm)


def test_clones_have_their_own_disks(pair: tuple[VM, VM]) -> None:
    pair[0].run("echo one >/home/debian/file; sync")
    assert not pair[1].run("test -e /home/debian/file", check=False).ok


def test_the_network_works_and_names_are_found(pair: tuple[VM, VM]) -> None:
    first, second = pair
    assert first.ip != second.ip
    assert first.run("getent hosts second").stdout.split()[0] == second.ip
    first.run(["ping", "-c", "1", "-W", "30", "second"])
    first.run(["networkctl", "renew", "eth0"], sudo=True)
    first.wait_until_succeeds(
        """networkctl status eth0 --json=short | grep '"AdministrativeState":"configured"'""", sudo=True
    )
    assert first.run("getent hosts second").stdout.split()[0] == second.ip


def test_only_a_process_remains_of_the_helper(pair: tuple[VM, VM]) -> None:
    for vm in pair:
        assert vm.run(f"readlink /proc/{_helper(vm)}/cwd", sudo=True).stdout == "/\n"
        assert not vm.run("ls /run/virtainer-clone*", check=False).ok
        assert vm.run("systemctl --failed --quiet --no-legend").stdout == ""


def test_a_clone_costs_less_memory_than_its_ram(pair: tuple[VM, VM]) -> None:
    # Shared memory does not count: anonymous memory was written since the restore.
    top = pair[0].machine.container.run(["sh", "-c", "grep -hs RssAnon /proc/[0-9]*/status | sort -rnk2 | head -n1"])[
        1
    ]
    assert int(top.split()[1]) < 300 * 1024, top


SET_UP = {
    "run_commands": ["date +%s.%N >/srv/stamp"],
    "files": {"/srv/file": "content"},
}


def test_setup_runs_once(launcher: Launcher) -> None:
    stamps = []
    for name in ("one", "two"):
        vm = launcher.launch(spec(name, **SET_UP))
        stamps.append(vm.run("cat /srv/stamp /srv/file; echo; hostname").stdout)
        launcher.discard(vm)
    assert [each.splitlines()[1:] for each in stamps] == [["content", "one"], ["content", "two"]]
    assert len({each.splitlines()[0] for each in stamps}) == 1


def test_workers_and_runs_share_one_template_that_python_prepares(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
        import pytest

        def install(vm, content="prepared", unique=UNIQUE):
            with open("calls", "a") as file:
                file.write("x")
            vm.write_text("/srv/prepared", content)

        @pytest.fixture(scope="session")
        def virtainer_prepare():
            return install
        """.replace("UNIQUE", str(time.time_ns()))
    )
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.virtainer(ram="512M", disk="3G", cpus=2)
        @pytest.mark.parametrize("number", range(4))
        def test_it(vm, number):
            assert vm.read_text("/srv/prepared") == "prepared"
        """
    )
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
    with (pytester.path / "log").open("w") as log:
        other = subprocess.Popen([*command, "-n", "2"], cwd=pytester.path, stdout=log, stderr=log)
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=4)
    assert other.wait(600) == 0, (pytester.path / "log").read_text()
    assert (pytester.path / "calls").read_text() == "x"


def place_of(launcher: Launcher, wanted: Spec) -> Template:
    template = launcher.templates.find(wanted, launcher.guests.get(wanted.image))
    assert template is not None, "it should be there"
    return template


@pytest.mark.thorough
def test_a_damaged_template_is_made_again(
    launcher: Launcher, settings: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    wanted = spec("damaged", **SET_UP)
    launcher.discard(launcher.launch(wanted))
    former = place_of(launcher, wanted)
    with build_launcher(settings, SILENT) as other:
        other.discard(other.launch(wanted))
        make_again(launcher, wanted, former, capfd)
        # What the other process remembers of it is outdated, which that process notices.
        vm = other.launch(wanted)
        assert vm.machine.keys == place_of(launcher, wanted).keys
        assert vm.run("cat /srv/file").stdout == "content"


def make_again(launcher: Launcher, wanted: Spec, former: Template, capfd: pytest.CaptureFixture[str]) -> None:
    with launcher.store.open() as opened:
        opened.shell(f"echo nonsense >{former.folder}/state")
    vm = launcher.launch(wanted)
    assert vm.run("echo works").stdout == "works\n"
    assert "a template of debian-13 does not restore and is made again: damaged has ended: " in capfd.readouterr().err
    assert place_of(launcher, wanted).keys != former.keys
    launcher.discard(vm)


@pytest.mark.thorough
def test_without_templates_a_vm_boots(vm_factory: VMFactory) -> None:
    shape: Arguments = {**SMALL, "template": False}
    vm = vm_factory("cold", **shape)
    assert "Linux version" in vm.console.text
    assert "\x1b" not in vm.console.text


def _helper(vm: VM) -> str:
    """Return the process id of the helper, of which there is one."""
    return vm.run("pgrep -f [v]irtainer-clone").stdout.strip()


def _overlay_bytes(vm: VM) -> float:
    nodes = vm.qmp("query-named-block-nodes", flat=True)
    return float(next(each for each in nodes if each["node-name"] == "disk")["image"]["actual-size"])


def test_snapshots_are_restored_in_place(pair: tuple[VM, VM]) -> None:
    vm = pair[0]
    vm.run("echo before >/tmp/file; nohup sleep 1000 >/dev/null 2>&1 &")
    vm.wait_until_succeeds("pgrep -x sleep")
    helper = _helper(vm)
    snapshot = vm.snapshot()
    assert _helper(vm) == helper, "no new helper was started"
    draw = "head -c 16 /dev/urandom | base64"
    vm.run("echo after >/tmp/file; pkill sleep; rm -rf /home/debian/*; sync")
    drawn: list[str] = []
    behind: list[float] = []
    while len(drawn) < 2 or (min(behind) > 0.05 and len(behind) < 8):
        vm.restore(snapshot)
        assert vm.machine.ssh.current is not None
        assert isinstance(vm.machine.ssh.current.transport, resumable.Recording), "no login was needed"
        behind.append(seconds_behind(vm))
        assert vm.run("cat /tmp/file; pgrep -x sleep >/dev/null && echo runs").stdout == "before\nruns\n"
        drawn.append(vm.run(draw).stdout)
        vm.run("echo after >/tmp/file")
    assert len(set(drawn)) == len(drawn)
    assert min(behind) <= 0.05, behind
    assert _helper(vm) == helper
    vm.run(["kill", helper], sudo=True)
    vm.wait_until_fails(["test", "-e", f"/proc/{helper}"])
    another = vm.snapshot()
    assert another.session is not None
    assert _helper(vm) != helper
    vm.restore(another)
    assert vm.snapshot().session is not None, "of a machine that was not used since"
    vm.run("echo after >/tmp/file")
    with pytest.raises(GuestPanic):
        vm.run("echo c >/proc/sysrq-trigger; sleep 60", sudo=True)
    vm.restore(snapshot)
    assert vm.run("cat /tmp/file").stdout == "before\n", "back from before the panic"
    before = _overlay_bytes(vm)
    vm.delete_snapshot(another)
    assert _overlay_bytes(vm) < before - 50e6, "the space of its memory is free"
    assert another.name not in vm.snapshots()
    with pytest.raises(UsageError, match=f"has no snapshot {another.name}; it has {snapshot.name}"):
        vm.restore(another)
    assert vm.snapshot().name != another.name
    with pytest.raises(UsageError, match="is a snapshot of another VM"):
        pair[1].restore(snapshot)


@pytest.mark.thorough
def test_no_message_of_the_serial_session_waits_for_the_next(pair: tuple[VM, VM]) -> None:
    """If sshd polled the port itself, one key exchange in some 200 would stall for 10 s."""
    vm = pair[0]
    vm.run("true")
    longest = 0.0
    for _ in range(1000):
        began = time.monotonic()
        assert vm.machine.ssh.freeze() is not None
        vm.run("true")
        longest = max(longest, time.monotonic() - began)
    assert longest < 5.0


@pytest.mark.parametrize("scope", ["class", "module", "session"])
def test_a_shared_vm_is_reset_for_each_test(pytester: pytest.Pytester, scope: str) -> None:
    pytester.makepyfile(
        f"""
        import pytest

        @pytest.mark.virtainer(ram="512M", disk="3G", cpus=2, scope="{scope}", reset="snapshot")
        class Test:
            @pytest.mark.parametrize("number", range(3))
            def test_it(self, vm, number):
                with open("machines", "a") as file:
                    file.write(f"{{vm.ip}}\\n")
                vm.run("test ! -e mark && touch mark")
        """
    )
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=3)
    machines = (pytester.path / "machines").read_text().split()
    assert len(machines) == 3
    assert len(set(machines)) == 1


def test_a_shared_vm_that_was_lost_is_replaced(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest
        from pytest_virtainers.plugin import session

        pytestmark = pytest.mark.virtainer(ram="512M", disk="3G", cpus=2, scope="module")

        def test_lose_it(vm):
            with pytest.raises(Exception, match="the guest switched itself off"):
                vm.run("poweroff -f; sleep 60", sudo=True)

        def test_the_next_one(vm):
            vm.run("true")

        def test_what_is_left(vm, pytestconfig):
            launcher = session.launcher(pytestconfig)
            ours = [f"virtainers.run={launcher.run_id}", "virtainers=vm"]
            there = launcher.engine.api.containers(all=True, filters={"label": ours})
            assert [each["Id"] for each in there] == [vm.machine.container.id]
        """
    )
    pytester.runpytest_subprocess("-p", "no:cacheprovider", "--virtainer-prefetch=off").assert_outcomes(passed=3)


def virtainers(*words: str, **environment: str) -> str:
    command = [sys.executable, "-m", "pytest_virtainers.cli", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    return done.stdout + done.stderr


def test_entries_in_use_are_not_removed(launcher: Launcher, pair: tuple[VM, VM]) -> None:
    place, guest = place_of(launcher, pair[0].spec).place, launcher.guests.get("debian-13").place
    row = next(line for line in virtainers("store", "ls").splitlines() if line.startswith(place))
    assert "in use  debian-13, amd64, 512 MiB, 2 CPU, user debian" in row
    for each in (place, guest):
        assert f"{each} is in use by a VM or by a test run" in virtainers("store", "rm", each)


def test_the_store_is_listed_and_pruned(launcher: Launcher, engine: DockerEngine) -> None:
    store = f"virtainers-test-{time.time_ns()}"
    try:
        with open_store(engine, store, launcher.runtime_image.reference(), "store") as opened:
            for number, name in enumerate(("older", "newer")):
                with opened.new(f"templates/{name}") as folder:
                    opened.container.put(folder, {"ram": bytes(3 * 2**20), "manifest.json": b"{}"})
                opened.shell(f"touch -d @{number} /store/templates/{name}/manifest.json")
        rows = [line.split() for line in virtainers("store", "ls", VIRTAINER_STORE=store).splitlines()]
        assert [row[0] for row in rows[:-1]] == ["PLACE", "templates/older", "templates/newer"]
        older_mib, newer_mib, all_mib = int(rows[1][1]), int(rows[2][1]), int(rows[3][0])
        assert 2 <= older_mib == newer_mib <= 4
        assert all_mib == older_mib + newer_mib
        assert virtainers("store", "prune", "--limit", "4M", VIRTAINER_STORE=store) == (
            f"removed templates/older ({older_mib} MiB)\n"
        )
        assert "templates/older is not in the store" in virtainers(
            "store", "rm", "templates/older", VIRTAINER_STORE=store
        )
        assert virtainers("store", "rm", "templates/newer", VIRTAINER_STORE=store) == ""
        assert virtainers("store", "ls", VIRTAINER_STORE=store).splitlines()[-1].startswith("0 MiB in")
    finally:
        engine.api.remove_volume(store)


@pytest.mark.thorough
def test_a_guest_that_cannot_be_cloned_is_booted(launcher: Launcher, capfd: pytest.CaptureFixture[str]) -> None:
    vm = launcher.launch(spec("bare", user_data={"runcmd": ["mv /usr/bin/python3 /usr/bin/python4"]}))
    assert "Linux version" in vm.console.text
    assert "are booted, not cloned: the guest has no python3" in capfd.readouterr().err
    launcher.discard(vm)
