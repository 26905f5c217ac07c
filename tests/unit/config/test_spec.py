from pathlib import Path

import pytest

from pytest_virtainers.config.settings import resolve
from pytest_virtainers.config.spec import check, merge
from pytest_virtainers.errors import SpecError


def refused(**arguments: object) -> str:
    with pytest.raises(SpecError) as caught:
        check(arguments, "here")
    return str(caught.value)


def test_later_layers_win_and_units_are_set() -> None:
    spec = merge(resolve([]).shape, check({"ram": "2G", "cpus": 2}, "a"), check({"ram": "512M", "name": "db"}, "b"))
    assert (spec.ram, spec.cpus, spec.disk, spec.name, spec.guest_hostname) == (512, 2, 10240, "db", "db")


def test_none_counts_as_not_given() -> None:
    assert check({"ram": None, "name": "db"}, "here") == {"name": "db"}


def test_unknown_arguments_are_named_with_a_suggestion() -> None:
    assert refused(xyzzy=1).startswith("here: unknown argument 'xyzzy'; allowed are name, image, ram, cpus,")
    assert "unknown argument 'imagee'; did you mean 'image'?" in refused(imagee="debian-13")
    assert "unknown argument 'memory'; did you mean 'ram'?" in refused(memory="1G")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ram": "lots"}, "here: ram='lots': a size is a number of MiB, or text such as 512M, 2G or 2GiB"),
        ({"ram": -1}, "here: ram=-1: a size is a number of MiB, or text such as 512M, 2G or 2GiB"),
        ({"disk": "5M"}, "here: disk='5M': a whole number of MiB is needed, at least 1024M"),
        ({"packages": "nginx"}, "here: packages='nginx': a list of package names is needed"),
        ({"run_commands": "ls"}, "here: run_commands='ls': a list of commands is needed, each a text for the shell"),
        ({"files": {"etc/motd": "hi"}}, "'etc/motd' is not an absolute path in the guest"),
        ({"files": {"/etc/motd": 7}}, "the content of /etc/motd is text, bytes or a pathlib.Path"),
        ({"user_data": "- a\n- b"}, "a mapping is needed"),
        ({"env": ["A=1"]}, "here: env=['A=1']: a mapping from names of variables to texts is needed"),
        ({"env": {"SHUTDOWN_TIMEOUT": "2m"}}, "SHUTDOWN_TIMEOUT is a number of seconds, not '2m'"),
        ({"env": {"CIDR": 7}}, "a mapping from names of variables to texts is needed"),
        (
            {"env": {"RAM": "7"}},
            "'RAM' is none of CIDR, DISK_CACHE, OS_VARIANT, SHUTDOWN_TIMEOUT; for others there are",
        ),
        ({"user_data": "a: [1"}, "not YAML: while parsing a flow sequence"),
        (
            {"user_data": 7},
            "to which ours can be added (as a dict, as YAML text, or as a pathlib.Path), not int",
        ),
        ({"user_data": Path("none.yaml")}, "the file cannot be read (No such file or directory)"),
    ],
)
def test_wrong_values_say_what_is_allowed(arguments: dict[str, object], message: str) -> None:
    assert message in refused(**arguments)


def test_firmware_that_an_architecture_does_not_have_is_refused() -> None:
    with pytest.raises(SpecError, match="db: arm64 machines boot from uefi, not from bios"):
        merge(resolve([]).shape, {"name": "db", "arch": "arm64", "firmware": "bios"})
    assert merge(resolve([]).shape, {"arch": "arm64", "firmware": "uefi"}).firmware == "uefi"


def test_user_data_and_files_are_read_relative_to_the_test(tmp_path: Path) -> None:
    (tmp_path / "seed.yaml").write_text("#cloud-config\ntimezone: UTC\n")
    (tmp_path / "motd").write_bytes(b"\xff hi")
    given = {"user_data": Path("seed.yaml"), "files": {"/etc/motd": Path("motd"), "/etc/x": "é"}}
    checked = check(given, "here", tmp_path)
    assert checked["user_data"] == {"timezone": "UTC"}
    assert checked["files"] == {"/etc/motd": b"\xff hi", "/etc/x": "é".encode()}


def test_an_image_may_be_a_path_relative_to_the_test(tmp_path: Path) -> None:
    given = check({"image": Path("disks/web.qcow2")}, "here", tmp_path)
    assert given == {"image": f"{tmp_path}/disks/web.qcow2"}
    assert check({"image": tmp_path}, "here", Path("/elsewhere")) == {"image": str(tmp_path)}
    assert check({"image": "debian-13"}, "here", tmp_path) == {"image": "debian-13"}


def test_long_values_are_cut_in_the_message() -> None:
    assert len(refused(ram="x" * 500)) < 200


def test_a_spec_without_arguments_has_their_defaults() -> None:
    plain = merge(resolve([]).shape)
    given = check({"name": "db", "files": {"/a": "b"}, "network": "lab", "ip": 2, "scope": "class"}, "here")
    assert merge(resolve([]).shape, given).without(given) == plain
    assert merge(resolve([]).shape, given).without({"name"}) == merge(resolve([]).shape, {**given, "name": "vm"})
