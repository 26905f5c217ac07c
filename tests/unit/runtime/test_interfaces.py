"""The container's interfaces, found by their MAC."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from virtainer import interfaces

if TYPE_CHECKING:
    from pathlib import Path

MAC = "02:42:0a:f0:01:02"


@pytest.fixture(autouse=True)
def links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interfaces, "_SYS_NET", tmp_path)
    for name, mac in {"lo": "00:00:00:00:00:00", "a-tap": MAC, "eth1": MAC, "eth0": "02:42:0a:f0:00:02"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "address").write_text(f"{mac}\n")
        (tmp_path / name / "mtu").write_text("1450\n")
    (tmp_path / "a-tap" / "tun_flags").touch()


def test_an_interface_is_found_by_its_mac_and_taps_do_not_count() -> None:
    assert interfaces.find(MAC) == "eth1"
    assert interfaces.mtu("eth1") == 1450


def test_a_missing_interface_is_reported_with_the_existing_ones() -> None:
    with pytest.raises(interfaces.Missing) as caught:
        interfaces.find("02:42:0a:f0:01:99")
    assert "no interface with the MAC 02:42:0a:f0:01:99 (there are: eth0 02:42:0a:f0:00:02, eth1 " in str(
        caught.value
    )


@pytest.mark.parametrize("word", ["", MAC.upper(), MAC[:-1], f"{MAC}:03", f"{MAC}\n", "02-42-0a-f0-01-02"])
def test_invalid_macs(word: str) -> None:
    assert interfaces.is_mac(MAC)
    assert not interfaces.is_mac(word)
