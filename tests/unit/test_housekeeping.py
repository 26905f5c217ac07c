"""What goes when the store is too full."""

from pytest_virtainers.housekeeping import Kept, surplus


def kept(name: str, size_mib: int, used: int, *, in_use: bool = False) -> Kept:
    return Kept(f"templates/{name}", size_mib, used, {}, in_use)


OLD, BUSY, NEW = kept("old", 100, 1), kept("busy", 300, 2, in_use=True), kept("new", 200, 3)
ALL = [OLD, BUSY, NEW]


def test_nothing_goes_while_all_fits() -> None:
    assert surplus(ALL, 600) == []


def test_the_least_recently_used_goes_first() -> None:
    assert surplus(ALL, 599) == [OLD]
    assert surplus(ALL, 499) == [OLD, NEW]


def test_what_is_in_use_or_to_be_kept_stays() -> None:
    assert surplus(ALL, 0) == [OLD, NEW]
    assert surplus(ALL, 0, keep={"templates/new"}) == [OLD]


def test_what_things_are_is_said_in_words() -> None:
    template = {"image": "debian-13", "ram": 1024, "cpus": 1, "user": "debian"}
    assert Kept("templates/x", 1, 1, template, False).what == "debian-13, 1024 MiB, 1 CPU, user debian"
    assert Kept("guests/debian-13-x", 1, 1, {"suite": "trixie"}, False).what == "trixie"
    assert Kept("guests/file-x", 1, 1, {"name": "my.qcow2"}, False).what == "my.qcow2"
