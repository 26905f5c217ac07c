"""The methods of `VM`, in one real VM."""

import hashlib
import shlex
import subprocess
import time
from pathlib import Path

import paramiko
import pytest

from pytest_virtainers import VM, CommandFailed, CommandTimeout
from pytest_virtainers.engine.docker.engine import DockerEngine
from pytest_virtainers.ssh import client
from pytest_virtainers.ssh.endpoint import RELAY, Endpoint
from pytest_virtainers.ssh.keys import KeyPair, Keys

MIB = 1024 * 1024
ODD_NAMES = ["with space", 'it\'s "quoted"', "new\nline", "ünïcødé-日本", "-dash;$HOME"]


def test_a_command_returns_its_exit_code_and_both_streams(session_vm: VM) -> None:
    result = session_vm.run("echo out; echo err >&2; exit 7", check=False)
    assert (result.exit_code, result.stdout, result.stderr, result.ok) == (7, "out\n", "err\n", False)
    assert 0 < result.duration < 60


def test_a_failed_command_is_an_assertion_error_with_its_output(session_vm: VM) -> None:
    with pytest.raises(CommandFailed) as caught:
        session_vm.run(["ls", "/no such"])
    assert "ls '/no such'\" on vm ended with exit code 2" in str(caught.value)
    assert "cannot access '/no such'" in str(caught.value)


@pytest.mark.parametrize("word", ["", "a b", "'\"", "$HOME `id` \\", "a\nb", "ünïcødé"])
def test_words_arrive_exactly(session_vm: VM, word: str) -> None:
    assert session_vm.run(["printf", "%s.", word]).stdout == f"{word}."
    assert session_vm.run(["printf", "%s.", word], sudo=True).stdout == f"{word}."


def test_input_environment_folder_and_sudo(session_vm: VM) -> None:
    result = session_vm.run(
        'cat; echo "$A|$PWD|$(id -un)"', input=b"\xff\n", env={"A": "1 2"}, cwd="/var/log", sudo=True
    )
    assert result.stdout_bytes == b"\xff\n1 2|/var/log|root\n"
    assert session_vm.run("cat").stdout == "", "without input, a command reads the end of file"


def test_another_host_key_than_the_pinned_one_is_refused(session_vm: VM) -> None:
    keys = Keys(session_vm.machine.keys.login, KeyPair.generate())
    with pytest.raises(paramiko.BadHostKeyException):
        client.log_in(session_vm.machine.endpoint.dial(10), session_vm.user, keys, 30)
    keys = Keys(KeyPair.generate(), session_vm.machine.keys.host)
    with pytest.raises(paramiko.AuthenticationException):
        client.log_in(session_vm.machine.endpoint.dial(10), session_vm.user, keys, 30)


def test_the_login_is_an_ordinary_user_and_passwords_are_refused(session_vm: VM) -> None:
    assert session_vm.run("id -un").stdout.strip() == session_vm.user == "debian"
    effective = session_vm.run("sshd -T", sudo=True).stdout
    assert "passwordauthentication no" in effective


@pytest.mark.thorough
def test_fifty_megabytes_on_both_streams(session_vm: VM) -> None:
    script = "head -c 50M /dev/zero & head -c 50M /dev/zero >&2; wait"
    result = session_vm.run(script, timeout=600)
    assert (len(result.stdout_bytes), len(result.stderr_bytes)) == (50 * MIB, 50 * MIB)


def test_a_background_process_does_not_block_run(session_vm: VM) -> None:
    began = time.monotonic()
    assert session_vm.run("sleep 300 & echo started").stdout == "started\n"
    assert time.monotonic() - began < 100
    session_vm.run("pkill sleep")


def test_a_background_process_that_prints_does_not_block_run(session_vm: VM) -> None:
    began = time.monotonic()
    result = session_vm.run("while sleep 0.3; do echo more; done & echo started", timeout=60)
    assert result.stdout.startswith("started\n")
    assert time.monotonic() - began < 30
    session_vm.run("pkill -f [s]leep.0.3", check=False)


def test_a_timeout_keeps_what_was_printed(session_vm: VM) -> None:
    began = time.monotonic()
    with pytest.raises(CommandTimeout) as caught:
        session_vm.run("echo early; exec sleep 300", timeout=8)
    assert time.monotonic() - began < 40
    assert caught.value.result.stdout == "early\n"
    assert "was still running after 8.0 s" in str(caught.value)
    assert session_vm.run("echo alive").stdout == "alive\n"


def test_a_timeout_applies_when_the_guest_hangs(session_vm: VM) -> None:
    container = session_vm.machine.container
    assert container.run(["qmp", '{"execute": "stop"}'])[0] == 0
    began = time.monotonic()
    try:
        with pytest.raises(CommandTimeout):
            session_vm.run("true", timeout=3)
        assert time.monotonic() - began < 30
        with pytest.raises(CommandTimeout):  # more than all buffers on the way hold
            session_vm.run("cat", input=bytes(64 * MIB), timeout=3)
        assert time.monotonic() - began < 60
    finally:
        container.run(["qmp", '{"execute": "cont"}'])
    assert session_vm.run("echo back", timeout=60).stdout == "back\n"


@pytest.mark.parametrize("name", ODD_NAMES)
def test_any_file_name_goes_there_and_back(session_vm: VM, tmp_path: Path, name: str) -> None:
    source = tmp_path / name
    source.write_bytes(b"\0\xff" + name.encode())
    where = session_vm.put(source, "/var/tmp/odd names/")
    assert where == f"/var/tmp/odd names/{name}"
    assert session_vm.get(where, tmp_path / "back").read_bytes() == source.read_bytes()


def test_a_tree_goes_there_and_back(session_vm: VM, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "script").write_text("#!/bin/sh\necho ran\n")
    (tree / "sub" / "script").chmod(0o750)
    (tree / "link").symlink_to("sub/script")
    session_vm.put(tree, "/opt/app")
    assert session_vm.run("stat -c %a:%U /opt/app/sub/script; /opt/app/link", sudo=True).stdout == "750:root\nran\n"
    back = session_vm.get("/opt/app", tmp_path / "back")
    assert (back / "link").readlink() == Path("sub/script")
    assert (back / "sub" / "script").stat().st_mode & 0o777 == 0o750


def test_owners_follow_the_folder_unless_given(session_vm: VM, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    session_vm.put(tmp_path / "f", "/home/debian/f")
    session_vm.put(tmp_path / "f", "/etc/f")
    session_vm.put(tmp_path / "f", "/etc/g", owner="daemon:adm")
    owners = session_vm.run("stat -c %U:%G /home/debian/f /etc/f /etc/g").stdout.split()
    assert owners == ["debian:debian", "root:root", "daemon:adm"]


def test_a_large_file_arrives_whole(session_vm: VM, tmp_path: Path) -> None:
    source = tmp_path / "large"
    source.write_bytes(bytes(range(256)) * (16 * MIB // 256))
    session_vm.put(source, "/var/tmp/large")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    assert session_vm.run("sha256sum /var/tmp/large").stdout.startswith(digest)
    assert hashlib.sha256(session_vm.get("/var/tmp/large", tmp_path / "back").read_bytes()).hexdigest() == digest


def test_text_files(session_vm: VM) -> None:
    session_vm.write_text("/etc/virtainer.d/a conf", "grüße\n", mode=0o600, owner="root")
    assert session_vm.run(["stat", "-c", "%a:%U", "/etc/virtainer.d/a conf"]).stdout == "600:root\n"
    session_vm.write_text("/etc/virtainer.d/a conf", "new\n")
    assert session_vm.read_text("/etc/virtainer.d/a conf") == "new\n"
    assert session_vm.run(["stat", "-c", "%a:%U", "/etc/virtainer.d/a conf"]).stdout == "600:root\n"
    with pytest.raises(FileNotFoundError, match="No such file in the guest"):
        session_vm.read_text("/etc/none")


def test_openssh_logs_in_with_the_printed_command(session_vm: VM) -> None:
    def ssh_output() -> str:
        words = [*shlex.split(session_vm.access.ssh_command), "echo $((6*7))"]
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=120).stdout

    assert ssh_output() == "42\n"
    endpoint = session_vm.machine.endpoint
    direct, endpoint.direct = endpoint.direct, False
    try:
        assert "pytest_virtainers.engine.relay" in session_vm.access.ssh_command
        assert ssh_output() == "42\n", "through the relay"
    finally:
        endpoint.direct = direct


def test_the_relay_works_without_a_route(session_vm: VM, engine: DockerEngine) -> None:
    relayed = Endpoint(engine, session_vm.machine.container)
    relayed.direct = False
    connection = client.log_in(relayed.dial(60), session_vm.user, session_vm.machine.keys, 60)
    output = bytearray()
    code = connection.execute(
        "head -c 3M /dev/zero",
        stdin=None,
        stdout=output.extend,
        stderr=output.extend,
        deadline=None,
        check=lambda: None,
    )
    connection.close()
    assert (code, len(output)) == (0, 3 * MIB)
    assert RELAY == ["relay", "22"]


def test_a_foreign_host_key_is_refused(session_vm: VM) -> None:
    import dataclasses

    from pytest_virtainers.ssh.keys import KeyPair

    expected = dataclasses.replace(session_vm.machine.keys, host=KeyPair.generate())
    import paramiko

    with pytest.raises(paramiko.BadHostKeyException):
        client.log_in(session_vm.machine.endpoint.dial(60), session_vm.user, expected, 60)


def test_the_console_is_collected(session_vm: VM) -> None:
    session_vm.run("printf '\\033[1mhello\\033[0m console\\n' >/dev/ttyS0", sudo=True)
    session_vm.wait_for_console("hello console$")
    assert "hello console\n" in session_vm.console.text


def test_the_container_has_least_privileges(session_vm: VM, engine: DockerEngine) -> None:
    about = engine.api.inspect_container(session_vm.machine.container.id)
    host = about["HostConfig"]
    assert not host["Privileged"]
    assert host["PortBindings"] in ({}, None)
    status = session_vm.machine.container.run(["cat", "/proc/1/status"])[1].decode()
    (held,) = [int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapBnd:")]
    # SETGID, SETUID, NET_BIND_SERVICE, NET_ADMIN, NET_RAW, by their numbers in linux/capability.h
    assert held == sum(1 << bit for bit in (6, 7, 10, 12, 13))
    assert "NoNewPrivs:\t1" in status
    code, qemu = session_vm.machine.container.run(["sh", "-c", "grep -h ^Uid /proc/[0-9]*/status | sort -u"])
    assert code == 0
    assert b"64055" in qemu, "QEMU runs as a separate user"


def test_the_labels_name_run_owner_and_test(session_vm: VM, engine: DockerEngine) -> None:
    import os

    labels = engine.api.inspect_container(session_vm.machine.container.id)["Config"]["Labels"]
    assert labels["virtainers"] == "vm"
    assert labels["virtainers.owner-pid"] == str(os.getpid())
    assert labels["virtainers.vm"] == "vm"
    assert labels["virtainers.image"] == session_vm.spec.image
    assert len(labels["virtainers.run"]) == 8


def test_the_guest_is_a_healthy_debian(vm: VM) -> None:
    assert vm.run("systemctl is-system-running --wait", check=False, timeout=300).stdout == "running\n"
    assert vm.run("systemctl --failed --no-legend").stdout == ""
    disk_mib = int(vm.run("df --output=size -BM / | tail -n1").stdout.strip().rstrip("M"))
    assert disk_mib > 0.85 * vm.spec.disk, "grown to the requested size"
