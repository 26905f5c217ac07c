"""`virtainers run` accepts the marker's arguments."""

import contextlib
import os
import threading
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_virtainers import api, cli
from pytest_virtainers.config.arguments import ARGUMENTS, Argument
from pytest_virtainers.config.network_spec import NetworkSpec, NicSpec
from pytest_virtainers.config.settings import resolve
from pytest_virtainers.config.spec import Spec, check, merge


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Spec]:
    """Record the specs of requested VMs; launch none."""
    specs: list[Spec] = []

    @contextlib.contextmanager
    def note(spec: Spec, *_: object) -> Iterator[Any]:
        specs.append(spec)
        access = SimpleNamespace(console_command="", ssh_command="echo ssh")
        yield SimpleNamespace(name=spec.name, spec=spec, ip="", access=access)

    monkeypatch.setattr(api, "launched", note)
    return specs


def run(*words: str) -> int:
    return cli.main(["run", *words, "--", "true"])


SHARED = [each for each in ARGUMENTS.values() if not each.sharing and each.name != "prepare"]


@pytest.mark.parametrize("argument", SHARED, ids=lambda each: each.name)
def test_run_has_each_argument_of_the_marker(argument: Argument) -> None:
    commands: Any = cli.virtainers.commands
    names = {each.name: each.opts[0] for each in commands["run"].params}
    assert names[argument.name] == ("image" if argument.name == "image" else argument.command_option)


WORDS = {
    "name": ("db", "db"),
    "image": ("debian-12", "debian-12"),
    "ram": ("2G", "2G"),
    "cpus": ("2", 2),
    "disk": ("20G", "20G"),
    "user": ("alice", "alice"),
    "packages": ("nginx", ["nginx"]),
    "run_commands": ("touch /x y", ["touch /x y"]),
    "hostname": ("other", "other"),
    "network": ("name=lab,mode=isolated", {"name": "lab", "mode": "isolated"}),
    "ip": ("11", 11),
    "nics": ("name=lab,ip=11", [{"network": "lab", "ip": 11}]),
    "internet": ("off", False),
    "template": ("off", False),
    "identity": ("fresh", "fresh"),
    "accel": ("tcg", "tcg"),
    "arch": ("arm64", "arm64"),
    "firmware": ("uefi", "uefi"),
    "env": ("OS_VARIANT=a=b", {"OS_VARIANT": "a=b"}),
    "boot_timeout": ("7", 7.0),
    "provision_timeout": ("7", 7.0),
}
FILES = {"user_data": "user-data", "meta_data": "meta-data", "authorized_keys": "key", "files": "file"}


def test_all_arguments_are_in_the_tables_above() -> None:
    assert {*WORDS, *FILES} == {each.name for each in SHARED}


@pytest.mark.parametrize("name", [*WORDS])
def test_an_option_has_the_effect_of_the_argument(launched: list[Spec], name: str) -> None:
    written, value = WORDS[name]
    assert run(*([] if name == "image" else [ARGUMENTS[name].command_option]), written) == 0
    usual = resolve([]).shape
    assert launched == [merge(usual, check({name: value}, "here"))]
    assert launched != [merge(usual)]


def test_options_with_files_read_them(launched: list[Spec], tmp_path: Path) -> None:
    for name, text in {
        "data": "timezone: UTC",
        "meta": "tier: web",
        "id.pub": "ssh-ed25519 AAAA me",
        "a:b": "hi",
    }.items():
        (tmp_path / name).write_text(text)
    words = [f"--user-data={tmp_path}/data", f"--meta-data={tmp_path}/meta", f"--key={tmp_path}/id.pub"]
    assert run(*words, f"--file={tmp_path}/a:b:/etc/one", "--file", f"{tmp_path}/meta:/etc/two") == 0
    (spec,) = launched
    assert (spec.user_data, spec.meta_data) == ({"timezone": "UTC"}, {"tier": "web"})
    assert spec.authorized_keys == ("ssh-ed25519 AAAA me",)
    assert spec.files == {"/etc/one": b"hi", "/etc/two": b"tier: web"}


def test_a_network_is_the_engines_by_its_name_or_one_that_is_described(launched: list[Spec]) -> None:
    words = [
        "--network=My_Lab",
        "--ip=10.1.2.3",
        "--nic=stack_db,ip=dhcp",
        "--nic=name=lan,subnet=10.50.0.0/24,ipv6=on",
    ]
    assert run(*words) == 0
    (spec,) = launched
    assert spec.network == NetworkSpec("my-lab", "existing", source="My_Lab")
    assert spec.ip == IPv4Address("10.1.2.3")
    assert spec.nics == (
        NicSpec(NetworkSpec("stack-db", "existing", source="stack_db"), "dhcp"),
        NicSpec(NetworkSpec("lan", subnet=IPv4Network("10.50.0.0/24"), ipv6=True)),
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--memory 2G", "No such option '--memory'. Did you mean '--ram'?\n"),
        ("--ssh-key x", "No such option '--ssh-key'. Did you mean '--key'?\n"),
        ("--file motd", "--file motd: FILE:PATH is needed, a file here and an absolute path in the guest"),
        ("--file none:/etc/motd", "--file none:/etc/motd: none cannot be read (No such"),
        ("--env OS_VARIANT", "--env OS_VARIANT: NAME=VALUE is needed"),
        ("--nic name=lab,back", "--nic back: NAME=VALUE is needed"),
        ("--nic lab --nic bad=1", "--nic lab bad=1: network={'bad': '1'}: a network has no 'bad'"),
        ("--nic mode=wire", "a network needs a name, by which VMs meet on it"),
        ("--network name=lab,size=5", "a network has no 'size'; allowed are name, mode, subnet"),
        ("--network lab --internet off", "--internet chooses a network's mode, and --network has one"),
        ("--persist x --template on", "the options: persist keeps a disk, but a clone has its template's"),
        ("--cold --template on", "--cold is --template off: leave out one of them"),
        (
            "--detach --nic lab",
            "--nic is not for --detach: further cards would not survive virtainers stop and start",
        ),
        ("--detach --vnc --name x", "--vnc ends with this command: virtainers vnc x is for later"),
        ("--boot-timeout soon", "--boot-timeout soon: a time in seconds above 0 is needed"),
    ],
)
def test_wrong_options_are_refused_before_anything_starts(
    launched: list[Spec], capsys: pytest.CaptureFixture[str], words: str, message: str
) -> None:
    assert run(*words.split()) == 2
    assert message in capsys.readouterr().err
    assert launched == []


@pytest.mark.parametrize("words", ["--cold", "--template off", "--persist disk", "--persist disk --template off"])
def test_options_that_boot_a_vm(
    launched: list[Spec], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*words.split()) == 0
    assert not launched[0].template


def test_a_wrong_image_is_reported_as_the_argument_that_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "", "--", "true"]) == 2
    assert "Error: IMAGE '': text that is not empty is needed" in capsys.readouterr().err


def test_a_file_is_read_once(launched: list[Spec], tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = threading.Thread(target=fifo.write_bytes, args=(b"once",), daemon=True)
    writer.start()
    assert run("--file", f"{fifo}:/x") == 0
    assert launched[0].files == {"/x": b"once"}
