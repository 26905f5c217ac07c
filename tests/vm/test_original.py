"""The commands in the README of the original virtainers, in their order, with an engine's command line and Debian.

Seeds, variables, rights and sources of a disk that need no operating system are in test_runtime_contract.py.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import paramiko
import pytest

from tests.seeds import ready
from tests.vm.plain_container import BOOT, LEAST, LIMITS, OWNED, Container, new_network

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_virtainers.engine.docker.engine import DockerEngine

pytestmark = [pytest.mark.alone, pytest.mark.thorough]

SSH = [
    "ssh",
    "-n",
    "-oBatchMode=yes",
    "-oStrictHostKeyChecking=no",
    "-oUserKnownHostsFile=/dev/null",
    "-oLogLevel=ERROR",
]


@pytest.fixture(scope="module")
def image(engine: DockerEngine) -> Iterator[str]:
    """In place of `docker.io/virtainers/fedora:29`."""
    command = [sys.executable, "-m", "pytest_virtainers.cli", "images", "bake", "debian-13"]
    environment = {**os.environ, "VIRTAINER_ENGINE": engine.kind}
    baked = subprocess.run(command, env=environment, text=True, stdout=subprocess.PIPE, check=True)
    assert baked.stdout == "localhost/virtainers/debian:13\n"
    yield baked.stdout.strip()
    engine.api.remove_image(baked.stdout.strip(), force=True)


@pytest.fixture(scope="module")
def rights(engine_cli: list[str], runtime_image: str) -> list[str]:
    """Return `--privileged`, unless this engine lacks the rights to grant it."""
    tried = subprocess.run(
        [*engine_cli, "run", "--rm", *LIMITS, "--privileged", "--entrypoint", "true", runtime_image],
        capture_output=True,
        check=False,
    )
    return ["--privileged"] if tried.returncode == 0 else LEAST


def test_a_prepared_virtainer_runs_through_the_plugins_core(engine: DockerEngine, image: str) -> None:
    command = [sys.executable, "-m", "pytest_virtainers.cli", "run", "--cold", "--vnc", f"docker-image://{image}"]
    environment = {**os.environ, "VIRTAINER_ENGINE": engine.kind}
    done = subprocess.run([*command, "--", "whoami"], env=environment, text=True, capture_output=True, check=False)
    assert (done.stdout, done.returncode) == ("debian\n", 0), done.stderr
    assert "its screen: vnc://127.0.0.1:" in done.stderr


class Original:
    """Commands of a user who has the image and a key."""

    def __init__(self, cli: list[str], rights: list[str], network: str, key: Path) -> None:
        self._run = [*("run", *rights, *OWNED, *LIMITS, "-d", "-t", f"--network={network}")]
        self.cli, self.key = cli, key
        self.names: list[str] = []
        subnet = Container(cli, network).engine("network", "inspect", network)
        self.first_three = subnet.partition('.0/24"')[0].rpartition('"')[2]

    def run(self, name: str, *words: str) -> Container:
        """`docker run … --name NAME -d -t --network=virtual …`."""
        container = Container(self.cli, f"original-{name}-{os.getpid()}")
        self.names.append(container.name)
        container.engine(*self._run, "--name", container.name, *words)
        return container

    def ssh(self, container: Container, command: str, *, wait: bool = False) -> str:
        """`ssh USER@$IP COMMAND`; with `wait`, until the machine is up."""
        deadline = time.monotonic() + BOOT
        while True:
            done = subprocess.run(
                [*SSH, "-i", self.key, f"debian@{container.address()}", command],
                capture_output=True,
                text=True,
                check=False,
                timeout=BOOT,
            )
            if done.returncode == 0:
                return done.stdout
            assert wait, done.stderr
            assert container.running(), container.console[-2000:]
            assert time.monotonic() < deadline, container.console[-2000:]
            time.sleep(2)


def with_password(container: Container, command: str) -> str:
    """`ssh debian@$IP COMMAND`, and the password `password`, until the machine is up."""
    deadline = time.monotonic() + BOOT
    while True:
        with contextlib.suppress(OSError, paramiko.SSHException), paramiko.SSHClient() as client:
            client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
            client.connect(
                container.address(),
                username="debian",
                password="password",  # noqa: S106  (the original's)
                look_for_keys=False,
                allow_agent=False,
                timeout=30,
                banner_timeout=60,
                auth_timeout=60,
            )
            return client.exec_command(command, timeout=60)[1].read().decode()
        assert container.running(), container.console[-2000:]
        assert time.monotonic() < deadline, container.console[-2000:]
        time.sleep(2)


@pytest.fixture
def original(engine_cli: list[str], rights: list[str], tmp_path: Path) -> Iterator[Original]:
    key = tmp_path / "id_rsa"
    subprocess.run(["ssh-keygen", "-q", "-t", "rsa", "-N", "", "-f", key], check=True)
    with new_network(engine_cli, "10.216", "-d", "bridge") as network:  # `docker network create -d bridge --subnet=…`
        original = Original(engine_cli, rights, network, key)
        yield original
        subprocess.run([*engine_cli, "rm", "-f", "-v", *original.names], capture_output=True, check=False)


def test_the_commands_of_the_original_readme_work(
    original: Original, image: str, runtime_image: str, guest_disk: Path, tmp_path: Path
) -> None:
    run, ssh = original.run, original.ssh
    data = tmp_path / "data_folder"
    data.mkdir()

    # TL;DR; "Tweaking and customizing"; "Persistent data"; a well-known address ("running docker inside")
    mounts = ["-v", f"{original.key}.pub:/tmp/id_rsa.pub:ro", "-v", f"{data}:/mounted"]
    settings = ["-e", "RAM=1536", "-e", "CPU=2", "-e", "VM_NAME=one", "--ip", f"{original.first_three}.10"]
    one = run("one", *mounts, *settings, image)
    assert one.address() == f"{original.first_three}.10"
    assert ssh(one, "whoami", wait=True) == "debian\n"
    assert "Linux version" in one.console, "docker logs"
    assert ssh(one, "nproc") == "2\n"
    assert 1400 < int(ssh(one, "grep MemTotal /proc/meminfo").split()[1]) // 1024 < 1536
    assert ssh(one, "hostname") == "cloudimage\n"
    assert "login:" in one.exec("console", stdin="\r\n")
    ssh(one, "sudo apt-get -q update && sudo apt-get -q install -y hello")
    one.engine("rm", "-f", one.name)
    assert (data / "local_image.qcow2").stat().st_size > 2**20, "the diff image"

    # a new container with the same data and a ready ISO; a generic one with its own user-data and meta-data; and one
    # whose disk is at a URL, without any seed
    user_data = f"#cloud-config\nssh_authorized_keys: [{original.key.with_suffix('.pub').read_text().strip()}]\n"
    iso = ready(tmp_path / "seed.iso", user_data=user_data, meta_data="instance-id: two\nlocal-hostname: two\n")
    two = run("two", "-v", f"{data}:/mounted", "-v", f"{iso}:/tmp/cloud_init.iso:ro", image)
    (tmp_path / "user-data").write_text(user_data)
    (tmp_path / "meta-data").write_text("instance-id: three\nlocal-hostname: three\n")
    seed = [word for each in ("user-data", "meta-data") for word in ("-v", f"{tmp_path / each}:/tmp/{each}:ro")]
    three = run("three", *seed, "-v", f"{guest_disk}:/image:ro", runtime_image)
    served = ["-v", f"{guest_disk.parent}:/served:ro", "--network-alias", "files", "--entrypoint", "python3"]
    run("files", *served, runtime_image, "-m", "http.server", "-d", "/served", "8000")
    four = run("four", "-e", f"IMAGE_URL=http://files:8000/{guest_disk.name}", runtime_image)
    assert ssh(two, "hello; hostname", wait=True) == "Hello, world!\ntwo\n"
    assert ssh(three, "hostname", wait=True) == "three\n"
    assert with_password(four, "whoami") == "debian\n"

    # "Connections between virtainers"
    for each, other in ((two, three), (three, two)):
        assert " 0% packet loss" in ssh(each, f"sudo ping -c 3 {other.address()}")
    connect = f"timeout 30 bash -c {shlex.quote(f'head -c 7 </dev/tcp/{three.address()}/22')}"
    assert ssh(two, connect) == "SSH-2.0"

    for each in (two, three, four):
        each.engine("stop", "-t", "150", each.name, timeout=200)
        assert each.engine("wait", each.name) == "0\n"
        assert "virtainer: end: stopped: the guest shut down as requested" in each.console, "-t: one stream"
