"""`virtainers.toml`: its content, the messages for a wrong one, and how tests use it."""

from ipaddress import IPv4Network
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from pytest_virtainers.config.network_spec import NetworkSpec, NicSpec
from pytest_virtainers.errors import SpecError
from pytest_virtainers.plugin import machines_file, markers

SHOP = """
    [networks.back]
    mode = "isolated"
    subnet = "10.50.0.0/24"

    [defaults]
    ram = "512M"

    [machines.web]
    nics = [{ network = "back", ip = 2 }, "plain"]

    [machines.db]
    ram = "1G"
    network = "back"
    files = { "/etc/motd" = "hello" }
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "virtainers.toml"
    path.write_text(dedent(text))
    return path


def test_machines_inherit_the_defaults(tmp_path: Path) -> None:
    read = machines_file.read(write(tmp_path, SHOP))
    back = NetworkSpec("back", "isolated", IPv4Network("10.50.0.0/24"))
    assert read.machines == {
        "web": {"name": "web", "ram": 512, "nics": (NicSpec(back, 2), NicSpec(NetworkSpec("plain")))},
        "db": {"name": "db", "ram": 1024, "network": back, "files": {"/etc/motd": b"hello"}},
    }


def test_the_nearest_file_up_to_the_root_is_read(tmp_path: Path) -> None:
    root, folder = tmp_path / "root", tmp_path / "root/tests/deep"
    folder.mkdir(parents=True)
    write(tmp_path, SHOP)
    assert machines_file.near(folder, root) is None
    above = write(root, "[machines.above]")
    found = machines_file.near(folder, root)
    assert found is not None
    assert (found.path, found.machines) == (above, {"above": {"name": "above"}})
    write(root / "tests", "[machines.nearest]")
    found = machines_file.near(folder, root)
    assert found is not None
    assert list(found.machines) == ["nearest"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("machines", ": Expected '='"),
        ("", ": it describes no machines. Add a table such as [machines.web]"),
        ("[machines.a]\n\n[machine.b]", ":3: machine: unknown; allowed are defaults, machines, networks"),
        ("# a line\nmachines = 3", ":2: machines: a table is needed"),
        ("[machines]\na = 3", ":2: machines.a: a table is needed"),
        ("[machines.a]\nram = '1G'\nrom = '1G'", ":3: machines.a.rom: unknown argument 'rom'; did you mean 'ram'?"),
        ("[machines.web-1]\nram = 'lots'", ":2: machines.web-1.ram: ram='lots': a size is a number of MiB"),
        ("[machines.A]", ":1: machines.A: name='A': a host name of 1 to 63 characters"),
        ("[machines.a]\n[defaults]\nram = 'lots'", ":3: defaults.ram: ram='lots': a size is a number of MiB"),
        ("[machines.a]\nram = '1G'\nnics = 'lab'", ":3: machines.a.nics: nics='lab': a list of networks is needed"),
        (
            "[networks.lab]\nipv6 = true\nmode = 'natt'\n[machines.a]",
            ":3: networks.lab.mode: mode='natt': allowed are nat, isolated",
        ),
        ("\n[networks.lab]\nmode = 'routed'\n[machines.a]", ":2: networks.lab: mode routed needs subnet"),
        (
            "[networks.lab]\nsubnett = 1\n[machines.a]",
            ":2: networks.lab.subnett: a network has no 'subnett'; did you mean 'subnet'? allowed are",
        ),
    ],
    ids=lambda each: each.partition(" ")[0],
)
def test_errors_have_the_line_and_a_suggestion(tmp_path: Path, text: str, words: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(SpecError) as caught:
        machines_file.read(path)
    assert str(caught.value).startswith(f"{path}{words}"), str(caught.value)


def test_an_unreadable_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "virtainers.toml").write_bytes(b"\xff")
    with pytest.raises(SpecError, match=r"virtainers\.toml: 'utf-8' codec can't decode"):
        machines_file.near(tmp_path, tmp_path)


@pytest.fixture
def wanted(pytester: pytest.Pytester) -> Any:
    """Return a function that returns the arguments of VMs for markers on a test in a class with `cpus=2`."""

    def get(*marks: str) -> dict[str, list[Any]]:
        source = "\n    ".join(("import pytest\n@pytest.mark.virtainer(cpus=2)\nclass Test:", *marks))
        (item,) = pytester.getitems(f"{source}\n    def test_it(self, vms): pass")
        return markers.by_name(item)

    return get


def test_named_markers_are_machines_and_others_are_for_all(wanted: Any) -> None:
    marks = ("@pytest.mark.virtainer('web', ram='1G')", "@pytest.mark.virtainer('db')")
    assert wanted(*marks) == {
        "db": [{}, {"cpus": 2}, {"name": "db"}],
        "web": [{}, {"cpus": 2}, {"name": "web", "ram": 1024}],
    }


def test_without_names_all_machines_of_the_file_are_used(pytester: pytest.Pytester, wanted: Any) -> None:
    write(pytester.path, "[machines.web]\nram = '512M'\n[machines.db]")
    assert wanted() == {
        "web": [{"name": "web", "ram": 512}, {"cpus": 2}],
        "db": [{"name": "db"}, {"cpus": 2}],
    }


def test_markers_choose_machines_of_the_file_and_override_them(pytester: pytest.Pytester, wanted: Any) -> None:
    write(pytester.path, "[defaults]\ndisk = '3G'\n[machines.web]\nram = '512M'\n[machines.db]")
    assert wanted("@pytest.mark.virtainer('web', ram='1G')", "@pytest.mark.virtainer('new')") == {
        "new": [{"disk": 3072}, {"cpus": 2}, {"name": "new"}],
        "web": [{"name": "web", "disk": 3072, "ram": 512}, {"cpus": 2}, {"name": "web", "ram": 1024}],
    }


def test_markers_use_networks_of_the_file_by_name(pytester: pytest.Pytester, wanted: Any) -> None:
    write(pytester.path, "[networks.lab]\nmode = 'isolated'\n[machines.web]")
    marks = ("@pytest.mark.virtainer('web', network='lab')", "@pytest.mark.virtainer('db', nics=['lab', 'office'])")
    found = wanted(*marks)
    lab = NetworkSpec("lab", "isolated")
    assert found["web"][-1]["network"] == lab
    assert found["db"][-1]["nics"] == (NicSpec(lab), NicSpec(NetworkSpec("office")))


def test_several_machines_need_names(wanted: Any) -> None:
    message = (
        r"::Test::test_it: the fixture vms needs markers with names, such as @pytest\.mark\.virtainer\(\"web\"\), "
        r"or machines in a file virtainers\.toml$"
    )
    with pytest.raises(SpecError, match=message):
        wanted()
