"""VMs that stay, with the command line alone; each command is a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from pytest_virtainers.engine.client import Engine
from tests.vm.test_viewer import Viewer

SHAPE = ("--ram", "512M", "--disk", "3G")
Virtainers = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def virtainers(runtime_image: str) -> Iterator[Virtainers]:
    """Run the command; machines that the tests have left go at the end."""
    assert runtime_image

    def run(*words: object, stdin: str = "", fails: bool = False) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "pytest_virtainers.cli", *map(str, words)]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=480)
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done

    yield run
    for each in json.loads(run("ls", "--json").stdout):
        run("rm", "--force", each["name"])


def left(engine: Engine) -> list[str]:
    machines = engine.api.containers(all=True, filters={"label": ["virtainers=machine"]})
    networks = engine.api.networks(filters={"label": ["virtainers=machines-network"]})
    return [*(each["Names"][0] for each in machines), *(each["Name"] for each in networks)]


def test_a_machine_stays_until_it_is_removed(virtainers: Virtainers, engine: Engine, tmp_path: Path) -> None:
    virtainers("run", "--detach", "--name", "web", *SHAPE)
    (web,) = json.loads(virtainers("ls", "--json").stdout)
    assert (web["name"], web["image"], web["state"]) == ("web", "debian-13", "running")
    assert virtainers("ls").stdout.splitlines()[1].split()[:3] == ["web", "debian-13", "running"]

    assert virtainers("ssh", "web", "--", "hostname;", "id", "-un").stdout == "web\ndebian\n"
    script = 'echo "$A" "$1"; id -u; pwd; cat; exit 7'
    words = ("--sudo", "--env", "A=x  y", "--cwd", "/tmp", "--", "sh", "-c", script, "-", "a  b")
    done = virtainers("exec", "web", *words, stdin="in", fails=True)
    assert (done.stdout, done.returncode) == ("x  y a  b\n0\n/tmp\nin", 7)

    (tmp_path / "there").write_bytes(b"\0\xff there")
    assert virtainers("cp", tmp_path / "there", "web:/srv/").stdout == "web:/srv/there\n"
    virtainers("cp", "web:/srv/there", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"\0\xff there"

    look = [sys.executable, "-m", "pytest_virtainers.cli", "vnc", "web"]
    with subprocess.Popen(look, stdout=subprocess.PIPE, text=True) as looking:
        assert looking.stdout
        address, _, password = looking.stdout.readline().partition(", password ")
        with Viewer(urlsplit(address).port or 0, password.strip()) as viewer:
            assert viewer.picture()
        looking.send_signal(signal.SIGINT)
        assert looking.wait(30) == 130
    told = virtainers("run", "--vnc", "--detach", fails=True).stderr
    assert "--vnc ends with this command: virtainers vnc vm is for later" in told

    assert "virtainer: starting web: 512 MiB" in virtainers("logs", "web").stdout
    virtainers("screenshot", "web", tmp_path / "screen.png")
    assert (tmp_path / "screen.png").read_bytes().startswith(b"\x89PNG")
    facts = json.loads(virtainers("inspect", "web", "--json").stdout)
    assert (facts["user"], facts["spec"]["ram"]) == ("debian", 512)
    assert "PRIVATE" not in json.dumps(facts)

    refused = virtainers("run", "--detach", "--name", "web", fails=True).stderr
    assert virtainers("cp", tmp_path / "missing", "web:/srv/", fails=True).stderr.startswith("virtainers: ")
    assert "there is a machine called web already: virtainers rm web removes it" in refused
    assert "web is running: virtainers stop web switches it off" in virtainers("rm", "web", fails=True).stderr
    virtainers("rm", "--force", "web")
    assert left(engine) == []
    assert "no machine is called web; there is none at all" in virtainers("ssh", "web", fails=True).stderr


def test_memory_and_disk_go_back_to_a_snapshot(virtainers: Virtainers) -> None:
    virtainers("run", "--detach", "--name", "past", *SHAPE, "--", "sh", "-c", "echo before >state")
    virtainers("snapshot", "past", "t1")
    virtainers("exec", "past", "--", "sh", "-c", "echo after >state")
    said = virtainers("restore", "past", "t2", fails=True).stderr
    assert "past has no snapshot t2; it has t1" in said
    assert virtainers("exec", "past", "--", "cat", "state").stdout == "after\n", "it goes on"
    virtainers("restore", "past", "t1")
    assert virtainers("exec", "past", "--", "cat", "state").stdout == "before\n"
    assert "past has a snapshot t1 already" in virtainers("snapshot", "past", "t1", fails=True).stderr
    assert virtainers("snapshot", "past").stdout == "s1\n"
    assert "t%1" in virtainers("snapshot", "past", "t%1", fails=True).stderr
    virtainers("rm", "--force", "past")


def test_machines_find_each_other_and_one_may_go_with_its_end(virtainers: Virtainers, engine: Engine) -> None:
    virtainers("run", "--detach", "--name", "one", *SHAPE)
    virtainers("run", "--detach", "--rm", "--name", "two", *SHAPE, "--", "ping", "-c1", "-W5", "one")
    virtainers("stop", "two")
    deadline = time.monotonic() + 20  # the engine removes it by itself
    while [each["name"] for each in json.loads(virtainers("ls", "--json").stdout)] != ["one"]:
        assert time.monotonic() < deadline
    virtainers("stop", "one")
    assert "one is exited: virtainers start one" in virtainers("exec", "one", "--", "true", fails=True).stderr
    assert "Remove one?" in virtainers("prune", stdin="n\n", fails=True).stderr
    assert virtainers("prune", "--force").stdout.splitlines()[0] == "removed one"
    assert left(engine) == []


def test_one_that_is_killed_before_it_is_ready_is_removed_by_the_next(virtainers: Virtainers, engine: Engine) -> None:
    command = [sys.executable, "-m", "pytest_virtainers.cli", "run", "--detach", "--name", "half", *SHAPE, "--cold"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as half:
        deadline = time.monotonic() + 60
        while not (there := left(engine)) or len(there) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        half.kill()
    assert len(left(engine)) == 2, "it has no lease"
    assert virtainers("ls", "--json").stdout == "[]\n", "what is not ready is no machine"
    removed = virtainers("prune").stdout.splitlines()
    assert len([each for each in removed if each.endswith(("-half", " virtainers-default"))]) == 2
    assert left(engine) == []


def test_a_disk_that_persists(virtainers: Virtainers, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(tmp_path / "disk", 1000, 1000)  # as of a user who may use the engine
    disk = ("--persist", tmp_path / "disk", *SHAPE)
    virtainers("run", *disk, "--", "sh", "-c", "echo kept >state")
    virtainers("run", "--detach", "--name", "again", *disk)
    assert virtainers("exec", "again", "--", "cat", "state").stdout == "kept\n"
    said = virtainers("commit", "again", tmp_path / "whole.qcow2", fails=True).stderr
    assert "again runs, and its disk changes: virtainers stop again first" in said
    virtainers("stop", "again")
    virtainers("commit", "again", tmp_path / "whole.qcow2")
    head = (tmp_path / "whole.qcow2").read_bytes()[:16]
    assert head[:4] == b"QFI\xfb"
    assert head[8:16] == bytes(8), "it needs no other disk"
    virtainers("rm", "again")


@pytest.mark.thorough
def test_switched_on_again_and_what_was_committed_boots(virtainers: Virtainers, tmp_path: Path) -> None:
    virtainers("run", "--detach", "--name", "first", *SHAPE, "--", "sh", "-c", "echo kept >state; sync")
    virtainers("stop", "first")
    virtainers("start", "first")
    assert virtainers("exec", "first", "--", "cat", "state").stdout == "kept\n"
    virtainers("stop", "first")
    virtainers("commit", "first", tmp_path / "whole.qcow2")
    virtainers("rm", "first")
    command = ("--", "cat", "/home/debian/state")
    assert (
        virtainers("run", tmp_path / "whole.qcow2", "--user", "debian", *SHAPE, "--cold", *command).stdout == "kept\n"
    )
