"""Detached VMs, with the command line only; each command is a separate process."""

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from pytest_virtainers.engine.docker.engine import DockerEngine
from tests.seeds import ready
from tests.vm.processes import reaper_of
from tests.vm.terminal import AT_TERMINAL
from tests.vm.vnc_viewer import Viewer

SHAPE = ("--ram", "512M", "--disk", "3G", "--cpus", "2")
Virtainers = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def virtainers(runtime_image: str) -> Iterator[Virtainers]:
    """Return a function that runs the command; machines of these tests, and of killed runs of them, are removed."""
    assert runtime_image

    def run(
        *words: object, stdin: str = "", fails: bool = False, **variables: str
    ) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "pytest_virtainers.cli", *map(str, words)]
        done = subprocess.run(
            command, env=os.environ | variables, input=stdin, capture_output=True, text=True, check=False, timeout=480
        )
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done

    def remove_ours() -> None:
        for name in names():
            if name.startswith("tests-") or "CI" in os.environ:  # where no other VMs are
                run("rm", "--force", name)

    def names() -> list[str]:
        return [each["name"] for each in json.loads(run("ls", "--json").stdout)]

    remove_ours()
    assert not (there := names()), f"`virtainers prune` is tested here: it would take {there}, too"
    run("prune", "--force")
    yield run
    remove_ours()


@contextlib.contextmanager
def until_ctrl_c(*words: str) -> Iterator[str]:
    """Run the command and return its first line; at the end, it gets Ctrl-C as at a terminal."""
    command = [*AT_TERMINAL, sys.executable, "-m", "pytest_virtainers.cli", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            yield process.stdout.readline()
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
        finally:
            process.kill()


def left(engine: DockerEngine) -> list[str]:
    vms = engine.api.containers(all=True, filters={"label": ["virtainers=machine"]})
    networks = engine.api.networks(filters={"label": ["virtainers=machines-network"]})
    return [*(each["Names"][0] for each in vms), *(each["Name"] for each in networks)]


@pytest.mark.each_engine
def test_a_detached_vm_stays_until_it_is_removed(
    virtainers: Virtainers, engine: DockerEngine, tmp_path: Path
) -> None:
    virtainers("run", "--detach", "--name", "tests-web", *SHAPE)
    (web,) = json.loads(virtainers("ls", "--json").stdout)
    assert (web["name"], web["image"], web["state"]) == ("tests-web", "debian-13", "running")
    assert virtainers("ls").stdout.splitlines()[1].split()[:3] == ["tests-web", "debian-13", "running"]

    assert virtainers("ssh", "tests-web", "--", "hostname;", "id", "-un").stdout == "tests-web\ndebian\n"
    script = 'echo "$A" "$1"; id -u; pwd; cat; exit 7'
    words = ("--sudo", "--env", "A=x  y", "--cwd", "/tmp", "--", "sh", "-c", script, "-", "a  b")
    done = virtainers("exec", "tests-web", *words, stdin="in", fails=True)
    assert (done.stdout, done.returncode) == ("x  y a  b\n0\n/tmp\nin", 7)

    (tmp_path / "there").write_bytes(b"\0\xff there")
    assert virtainers("cp", tmp_path / "there", "tests-web:/srv/").stdout == "tests-web:/srv/there\n"
    virtainers("cp", "tests-web:/srv/there", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"\0\xff there"

    with until_ctrl_c("vnc", "tests-web") as said:
        address, _, password = said.partition(", password ")
        with Viewer(urlsplit(address).port or 0, password.strip()) as viewer:
            assert viewer.picture()
    with until_ctrl_c("vnc", "tests-web", "--web") as said:
        assert "noVNC" in requests.get(said, timeout=30).text
    stderr = virtainers("run", "--vnc", "--detach", fails=True).stderr
    assert "--vnc ends with this command: virtainers vnc vm is for later" in stderr

    assert "virtainer: starting tests-web: 512 MiB" in virtainers("logs", "tests-web").stdout
    virtainers("screenshot", "tests-web", tmp_path / "screen.png")
    assert (tmp_path / "screen.png").read_bytes().startswith(b"\x89PNG")
    facts = json.loads(virtainers("inspect", "tests-web", "--json").stdout)
    assert (facts["user"], facts["spec"]["ram"]) == ("debian", 512)
    assert "PRIVATE" not in json.dumps(facts)

    refused = virtainers("run", "--detach", "--name", "tests-web", fails=True).stderr
    assert virtainers("cp", tmp_path / "missing", "tests-web:/srv/", fails=True).stderr.startswith("virtainers: ")
    assert "a detached VM is called tests-web already. Remove it (virtainers rm tests-web)" in refused
    refused = virtainers("rm", "tests-web", fails=True).stderr
    assert "tests-web is running. Switch it off first (virtainers stop tests-web)" in refused
    virtainers("rm", "--force", "tests-web")
    assert left(engine) == []
    assert "no detached VM is called tests-web: there is none" in virtainers("ssh", "tests-web", fails=True).stderr


def test_restore_brings_back_memory_and_disk(virtainers: Virtainers) -> None:
    virtainers("run", "--detach", "--name", "tests-past", *SHAPE, "--", "sh", "-c", "echo before >state")
    virtainers("snapshot", "tests-past", "t1")
    virtainers("exec", "tests-past", "--", "sh", "-c", "echo after >state")
    said = virtainers("restore", "tests-past", "t2", fails=True).stderr
    assert "tests-past has no snapshot t2; it has t1" in said
    assert virtainers("exec", "tests-past", "--", "cat", "state").stdout == "after\n", "it continues"
    virtainers("restore", "tests-past", "t1")
    assert virtainers("exec", "tests-past", "--", "cat", "state").stdout == "before\n"
    assert "tests-past has a snapshot t1 already" in virtainers("snapshot", "tests-past", "t1", fails=True).stderr
    virtainers("exec", "tests-past", "--", "sh", "-c", "echo newest >state")
    assert virtainers("snapshot", "tests-past").stdout == "s1\n"
    virtainers("exec", "tests-past", "--", "sh", "-c", "echo later >state")
    virtainers("restore", "tests-past")
    assert virtainers("exec", "tests-past", "--", "cat", "state").stdout == "newest\n", "not t1"
    assert virtainers("snapshot", "--list", "tests-past").stdout == "t1\ns1\n"
    assert json.loads(virtainers("snapshot", "--list", "--json", "tests-past").stdout) == [
        {"tag": "t1"},
        {"tag": "s1"},
    ]
    for line, offered in {
        "restore tests-past t": "plain,t1\n",
        "cp tests-pa": "plain,tests-past:\n",
        "store rm templates/": "plain,templates/",
    }.items():
        words = {"COMP_WORDS": f"virtainers {line}", "COMP_CWORD": str(line.count(" ") + 1)}
        assert virtainers(_VIRTAINERS_COMPLETE="bash_complete", **words).stdout.startswith(offered), line
    virtainers("snapshot", "--delete", "tests-past", "s1")
    said = virtainers("snapshot", "-d", "tests-past", "s1", fails=True).stderr
    assert "tests-past has no snapshot s1; it has t1" in said
    assert virtainers("snapshot", "-l", "tests-past").stdout == "t1\n"
    assert "t%1" in virtainers("snapshot", "tests-past", "t%1", fails=True).stderr
    virtainers("rm", "--force", "tests-past")


@pytest.mark.each_engine
def test_machines_find_each_other_and_may_be_removed_at_their_end(
    virtainers: Virtainers, engine: DockerEngine
) -> None:
    virtainers("run", "--detach", "--name", "tests-one", *SHAPE)
    virtainers("run", "--detach", "--rm", "--name", "tests-two", *SHAPE, "--", "ping", "-c1", "-W30", "tests-one")
    virtainers("stop", "tests-two")
    deadline = time.monotonic() + 60  # the engine removes it
    while [each["name"] for each in json.loads(virtainers("ls", "--json").stdout)] != ["tests-one"]:
        assert time.monotonic() < deadline
    subprocess.run([*engine.command_line(), "stop", "virtainers-tests-one"], check=True)
    state = engine.api.inspect_container("virtainers-tests-one")["State"]
    assert state["ExitCode"] == 0, "the engine waits for the guest longer than it does by default"
    assert (
        "tests-one is exited: virtainers start tests-one"
        in virtainers("exec", "tests-one", "--", "true", fails=True).stderr
    )
    assert "Remove tests-one?" in virtainers("prune", stdin="n\n", fails=True).stderr
    assert virtainers("prune", "--force").stdout.splitlines()[0] == "removed tests-one"
    assert left(engine) == []


@pytest.mark.each_engine
@pytest.mark.parametrize("reaped", [True, False])
def test_a_machine_killed_before_it_is_ready_is_removed(
    virtainers: Virtainers, engine: DockerEngine, *, reaped: bool
) -> None:
    words = ("run", "--detach", "--name", "tests-half", *SHAPE, "--cold")
    command = [sys.executable, "-m", "pytest_virtainers.cli", *words]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as half:
        deadline = time.monotonic() + 240
        while not (there := left(engine)) or len(there) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        if not reaped:
            os.kill(reaper_of(half.pid), signal.SIGKILL)
        half.kill()
    if reaped:
        deadline = time.monotonic() + 60  # without its reaper it would stay; test_ending.py measures the seconds
        while left(engine):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        return
    assert len(left(engine)) == 2, "it has no lease"
    assert virtainers("ls", "--json").stdout == "[]\n", "a machine that is not ready is not listed"
    removed = virtainers("prune").stdout.splitlines()
    assert len([each for each in removed if each.endswith(("-half", " virtainers-default"))]) == 2
    assert left(engine) == []


def test_a_disk_persists_in_a_folder(virtainers: Virtainers, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(tmp_path / "disk", 1000, 1000)  # owned by a user who may use the engine
    disk = ("--persist", tmp_path / "disk", *SHAPE)
    seed = ready(
        tmp_path / "seed.iso",
        user_data="#cloud-config\nwrite_files: [{path: /srv/seeded, content: by user-data}]\n",
        meta_data="instance-id: theirs\nlocal-hostname: by-meta-data\n",
    )
    script = "cat /srv/seeded /run/cloud-init/.instance-id; echo kept >state; hostname; sleep 1000"
    words = map(str, ("run", "--seed-iso", seed, *disk, "--", "sh", "-c", script))
    command = [sys.executable, "-m", "pytest_virtainers.cli", *words]
    with contextlib.ExitStack() as stack:
        near, far = pty.openpty()
        window = stack.enter_context(subprocess.Popen(["cat"], stdin=near, stdout=subprocess.DEVNULL))
        stack.callback(window.kill)
        first = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=far, text=True))
        stack.callback(first.kill)
        os.close(near)
        os.close(far)
        assert first.stdout
        assert first.stdout.readline().startswith("by user-datatheirs-virtainers-")
        assert first.stdout.readline() == "by-meta-data\n"
        window.kill()
        window.wait()
        first.send_signal(signal.SIGHUP)
        assert first.wait(300) == 128 + signal.SIGHUP
    virtainers("run", "--detach", "--name", "tests-again", "--env", "SHUTDOWN_TIMEOUT=1", *disk)
    assert virtainers("exec", "tests-again", "--", "cat", "state").stdout == "kept\n"
    said = virtainers("commit", "tests-again", tmp_path / "whole.qcow2", fails=True).stderr
    assert "tests-again is running, and its disk changes. Switch it off first: virtainers stop tests-again" in said
    cut = "tests-again did not shut down within its SHUTDOWN_TIMEOUT: its power was cut"
    assert cut in virtainers("stop", "tests-again").stderr
    stderr = virtainers("commit", "tests-again", tmp_path / "whole.qcow2").stderr
    assert f"run {tmp_path}/whole.qcow2 --user debian --arch amd64 --firmware bios\n" in stderr
    head = (tmp_path / "whole.qcow2").read_bytes()[:16]
    assert head[:4] == b"QFI\xfb"
    assert head[8:16] == bytes(8), "it needs no other disk"
    virtainers("rm", "tests-again")


@pytest.mark.thorough
def test_a_machine_starts_again_and_its_committed_disk_boots(virtainers: Virtainers, tmp_path: Path) -> None:
    virtainers("run", "--detach", "--name", "tests-first", *SHAPE, "--", "sh", "-c", "echo kept >state; sync")
    virtainers("stop", "tests-first")
    virtainers("start", "tests-first")
    assert virtainers("exec", "tests-first", "--", "cat", "state").stdout == "kept\n"
    virtainers("stop", "tests-first")
    virtainers("commit", "tests-first", tmp_path / "whole.qcow2")
    virtainers("rm", "tests-first")
    command = ("--", "cat", "/home/debian/state")
    assert (
        virtainers("run", tmp_path / "whole.qcow2", "--user", "debian", *SHAPE, "--cold", *command).stdout == "kept\n"
    )
