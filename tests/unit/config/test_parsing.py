from pathlib import Path

import pytest

from pytest_virtainers.config import parsing


@pytest.mark.parametrize(
    ("written", "mib"),
    [(1024, 1024), ("1024", 1024), ("1024M", 1024), ("2G", 2048), ("2GiB", 2048), ("1.5 gb", 1536), ("1T", 1 << 20)],
)
def test_sizes_read_as_people_write_them(written: object, mib: int) -> None:
    assert parsing.size_mib(least=64)(written) == mib


@pytest.mark.parametrize("written", ["lots", "-1", -1, "", "1X", "1e3", 1.5, True, None, "63M", "1000K", 0])
def test_wrong_sizes_are_refused(written: object) -> None:
    with pytest.raises(ValueError, match=r"2GiB|at least 64M"):
        parsing.size_mib(least=64)(written)


@pytest.mark.parametrize(("written", "mib"), [("16G", 16384), (2048, 2048), ("80%", 800), ("100%", 1000), ("1%", 10)])
def test_a_part_is_a_size_or_a_share(written: object, mib: int) -> None:
    assert parsing.size_or_share(written)(1000) == mib


@pytest.mark.parametrize("written", ["0%", "101%", "-5%", "half", "1.5%", None, "10M"])
def test_wrong_shares_are_refused(written: object) -> None:
    with pytest.raises(ValueError, match=r"; or a share such as 80%$"):
        parsing.size_or_share(written)


@pytest.mark.parametrize("written", ["0", 0, -1, "1.5", True, "many", None])
def test_whole_numbers_start_at_one(written: object) -> None:
    with pytest.raises(ValueError, match="from 1 on"):
        parsing.whole_number(written)
    assert parsing.whole_number("4") == 4


@pytest.mark.parametrize("written", ["0", -1, "soon", "nan", "inf", True, None])
def test_seconds_are_positive(written: object) -> None:
    with pytest.raises(ValueError, match="seconds above 0"):
        parsing.seconds(written)
    assert parsing.seconds("0.5") == 0.5


def test_switches_accept_words_and_booleans() -> None:
    assert [parsing.switch(each) for each in ("on", "off", True, False)] == [True, False, True, False]
    with pytest.raises(ValueError, match="on and off"):
        parsing.switch("yes")


@pytest.mark.parametrize("written", ["", "-a", "a-", "A", "a.b", "a" * 64, "a_b", 7, "x; reboot"])
def test_host_names_are_one_dns_label(written: object) -> None:
    with pytest.raises(ValueError, match="host name"):
        parsing.host_name(written)


@pytest.mark.parametrize("written", ["", "1st", "Root", "a b", "$(id)", None])
def test_user_names_are_plain(written: object) -> None:
    with pytest.raises(ValueError, match="login name"):
        parsing.user_name(written)


@pytest.mark.parametrize(("written", "count"), [("all", None), ("1", 1), (20, 20)])
def test_a_count_may_be_all(written: object, count: int | None) -> None:
    assert parsing.count_or_all(written) == count


@pytest.mark.parametrize("written", ["0", -1, "ALL", "some", None, True])
def test_wrong_counts_are_refused(written: object) -> None:
    with pytest.raises(ValueError, match=r"from 1 on.*; or all$"):
        parsing.count_or_all(written)


@pytest.mark.parametrize(
    ("written", "bits"),
    [(800, 800), ("800", 800), ("512kbit", 512_000), ("10Mbit", 10**7), ("1 Gbit/s", 10**9), (" 5bit ", 5)],
)
def test_rates_read_as_people_write_them(written: object, bits: int) -> None:
    assert parsing.bits_per_second(written) == bits


@pytest.mark.parametrize("written", [0, -1, "0kbit", "1.5Mbit", "10MB", "10M", "fast", "", 1.5, True, None])
def test_wrong_rates_are_refused(written: object) -> None:
    with pytest.raises(ValueError, match=r"^a rate is a number of bits a second, or text such as 512kbit"):
        parsing.bits_per_second(written)


def test_pairs_and_files_of_the_command_line() -> None:
    assert parsing.pairs(["A=1=2", "B="]) == {"A": "1=2", "B": ""}
    assert parsing.guest_files(["a:b:/etc/c", "./d:/e"]) == {"/etc/c": Path("a:b"), "/e": Path("d")}


@pytest.mark.parametrize("wrong", ["", "A", ":/etc/c", "a:"])
def test_other_words_of_the_command_line_are_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=f"^{wrong}: NAME=VALUE is needed$"):
        parsing.pairs(["A=1", wrong])
    with pytest.raises(ValueError, match=f"^{wrong}: FILE:PATH is needed"):
        parsing.guest_files(["a:/b", wrong])
