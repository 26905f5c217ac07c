"""Commands: other users, processes, timeouts that leave nothing, the log."""

import signal
import time

import pytest

from pytest_virtainers import VM, CommandFailed, CommandTimeout, OutputTooLarge, SSHError, VMFactory, VMGone
from pytest_virtainers.vm import connection, limited


def test_commands_run_as_another_user(session_vm: VM) -> None:
    assert session_vm.run("id -un", user="nobody").stdout == "nobody\n"
    assert session_vm.run(["id", "-un"], user="daemon", cwd="/").stdout == "daemon\n"


@pytest.mark.parametrize("sudo", [False, True])
def test_a_timeout_leaves_no_process(session_vm: VM, sudo: bool) -> None:
    with pytest.raises(CommandTimeout) as caught:
        session_vm.run("echo said >&2; sleep 1111 & sleep 1111", timeout=8, sudo=sudo)
    assert caught.value.result.stderr == "said\n"
    session_vm.wait_until_fails(["pgrep", "-x", "-f", "sleep 1111"])


def test_bytes_that_are_not_text_are_kept(session_vm: VM) -> None:
    result = session_vm.run(r"printf '\377\376'; printf '\375' >&2", timeout=30)
    assert (result.stdout_bytes, result.stderr_bytes) == (b"\xff\xfe", b"\xfd")


def test_output_without_end_is_refused(session_vm: VM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limited, "COMMAND_MIB", 2)
    with pytest.raises(OutputTooLarge, match=r"standard output of 'yes' on vm has more than 2 MiB"):
        session_vm.run("yes")
    with (
        session_vm.popen("yes >&2") as process,
        pytest.raises(OutputTooLarge, match=r"standard error of 'yes >&2' on vm has more than 2 MiB"),
    ):
        process.wait(60)
    assert session_vm.run("echo still here").stdout == "still here\n"
    session_vm.wait_until_fails("pgrep -x yes")


def test_a_process_is_followed_line_by_line(session_vm: VM) -> None:
    with session_vm.popen("echo one; read answer; echo $answer; echo loud >&2; exit 3") as process:
        lines = process.lines(timeout=30)
        assert next(lines) == "one"
        assert process.poll() is None
        process.write("two\n")
        assert list(lines) == ["two"]
        result = process.wait(30)
    assert (result.exit_code, result.stdout, result.stderr) == (3, "one\ntwo\n", "loud\n")


@pytest.mark.parametrize("sudo", [False, True])
def test_a_process_gets_signals(session_vm: VM, sudo: bool) -> None:
    script = "import signal, time; signal.signal(signal.SIGUSR1, lambda *_: print('heard', flush=True)); "
    script += "print('ready', flush=True); time.sleep(60); time.sleep(60)"
    process = session_vm.popen(["python3", "-c", script], sudo=sudo)
    lines = process.lines(timeout=30)
    assert next(lines) == "ready"
    process.send_signal(signal.SIGUSR1)
    assert next(lines) == "heard"
    process.terminate()
    assert process.wait(30).exit_code != 0
    assert not session_vm.run(["pgrep", "-f", "[t]ime.sleep"], check=False)


def test_a_process_ends_with_its_block(session_vm: VM) -> None:
    with session_vm.popen("exec sleep 2222"):
        session_vm.wait_until_succeeds("pgrep -x -f 'sleep 2222'")
    assert not session_vm.run("pgrep -x -f 'sleep 2222'", check=False)


@pytest.mark.parametrize("sudo", [pytest.param(False, marks=pytest.mark.thorough), True])
def test_a_process_that_ignores_sigterm_ends_with_its_block(session_vm: VM, sudo: bool) -> None:
    stubborn = "trap '' TERM; echo ready; while :; do sleep 3333; done"
    with session_vm.popen(stubborn, sudo=sudo) as process:
        assert next(process.lines(timeout=30)) == "ready"
        session_vm.wait_until_succeeds(["pgrep", "-x", "-f", "sleep 3333"])
    assert process.poll() == -1
    assert not session_vm.run("pgrep -f '[s]leep 3333'", check=False), "no new command of the loop"


def test_a_loop_is_killed_with_what_it_runs(session_vm: VM) -> None:
    process = session_vm.popen("while :; do echo on; sleep 0.1; done")
    assert next(process.lines(timeout=30)) == "on"
    process.kill()
    assert process.wait(session_vm.scaled(10)).exit_code == -1


def test_the_log_has_all_that_was_done(session_vm: VM) -> None:
    session_vm.run("printf 12345; exit 4", check=False)
    session_vm.run("printf 'a\nb'", sudo=True)
    with pytest.raises(CommandTimeout):
        session_vm.run("sleep 60", timeout=1)
    session_vm.write_text("/tmp/logged", "x")
    failed, wrote, timed_out, written = session_vm.log.text.splitlines()[-4:]
    assert "exit 4" in failed
    assert "out 5 B, err 0 B  debian$ printf 12345; exit 4" in failed
    assert r"root$ printf 'a\nb'" in wrote
    assert "timeout" in timed_out
    assert "root$ write /tmp/logged (1 B)" in written


def test_output_is_shown_while_commands_run(session_vm: VM) -> None:
    shown: list[str] = []
    session_vm.machine.echo = shown.append
    try:
        session_vm.run("echo one; echo two >&2; printf three")
    finally:
        session_vm.machine.echo = None
    assert sorted(shown) == ["vm: one\n", "vm: three\n", "vm: two\n"]


def test_a_failure_reads_well_and_points_at_the_test(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        def test_it(session_vm):
            session_vm.run("yes | head -c 100000; echo the end >&2; exit 9")
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "--virtainer-keep=never")
    result.stdout.fnmatch_lines(
        [
            '>       session_vm.run("yes | head -c 100000; echo the end >&2; exit 9")',
            "E       *CommandFailed: 'yes | head -c 100000; echo the end >&2; exit 9' on vm ended with exit code 9",
            "E       --- stdout (100000 bytes)",
            "E       [[]… 99920 characters left out …[]]",
            "E       --- stderr (8 bytes)",
            "E       the end",
            "test_a_failure_reads_well_and_points_at_the_test.py:2: CommandFailed",
        ]
    )
    assert "vm/commands.py" not in result.stdout.str()


def test_a_process_that_is_killed_for_its_memory_is_named(session_vm: VM) -> None:
    limited = "systemd-run --quiet --wait --collect -p MemoryMax=32M -p MemorySwapMax=0 tail /dev/zero"
    with pytest.raises(
        CommandFailed, match=r"--- the guest's kernel\nMemory cgroup out of memory: Killed process \d+ \(tail\)"
    ):
        session_vm.run(limited, sudo=True, timeout=120)


# With a second processor it still answers while its memory runs out, and half the memory is half the wait. It may
# thrash for minutes before that.
@pytest.mark.thorough
@pytest.mark.virtainer(ram="512M", disk="3G", cpus=2)
def test_a_process_killed_without_free_memory_is_named(vm: VM) -> None:
    with pytest.raises(CommandFailed, match=r"--- the guest's kernel\nOut of memory: Killed process \d+ \(tail\)"):
        vm.run("tail /dev/zero", timeout=300)


def test_a_broken_connection_is_made_again(session_vm: VM) -> None:
    session_vm.popen("sleep 1; pkill -9 -x sshd-session", sudo=True)
    began = time.monotonic()
    while session_vm.machine.ssh.current is not None and session_vm.machine.ssh.current.alive:
        assert time.monotonic() - began < 60
        time.sleep(0.1)
    assert session_vm.run("echo again").stdout == "again\n"


def test_a_dead_sshd_is_reported(vm_factory: VMFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_RECONNECT_SECONDS", 5.0)
    deaf = vm_factory("deaf")
    tried = r"deaf: the SSH connection broke while .* ran; a new connection was tried, and met: .*refused"
    with pytest.raises(SSHError, match=tried):
        deaf.run("systemctl stop ssh.socket ssh.service; pkill -9 -x sshd-session; sleep 60", sudo=True)
    with pytest.raises(SSHError, match=r"deaf did not let us log in over SSH within .*\. The last try: .*refused"):
        deaf.run("true")


def test_a_paused_machine_is_reported(session_vm: VM) -> None:
    session_vm.pause()
    try:
        with pytest.raises(VMGone, match=r"vm does not run: it is paused; vm\.resume\(\) continues it"):
            session_vm.run("true")
    finally:
        session_vm.resume()
    session_vm.run("true")
