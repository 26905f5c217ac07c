"""Packets that the guest may send, by their sender address."""

from __future__ import annotations

from virtainer import bridged_nic, isolation, sources
from virtainer.settings import Settings

MAC = "02:42:0a:01:02:03"
TAKEN = bridged_nic.Taken(MAC, "eth1", ("10.1.2.3/24", "fd00::3/64"), 1500)
CLOSED = isolation.closed(Settings.from_env({"CLOSED_HOSTS": "203.0.113.7"}), {"10.1.2.1"}, {"10.1.2.0/24"})
GIVEN = sources.frame_rules(MAC, TAKEN.addresses)


def test_the_first_card_sends_only_from_its_own_or_unspecified_addresses() -> None:
    rules = sources.rules("tap", ("10.1.2.2", "fd00::2"), ("10.1.2.0/24", "fd00::/64"))
    assert "hook prerouting priority raw" in rules, "before NAT, and for the container itself, too"
    assert 'iifname "tap" ip saddr != { 0.0.0.0, 10.1.2.2 } drop' in rules
    assert 'iifname "tap" ip6 saddr != { ::, fe80::/10, fd00::2 } drop' in rules


def test_nothing_leaves_with_an_inner_address() -> None:
    """Packets that belong to no connection pass NAT unchanged."""
    rules = sources.rules("tap", ("10.1.2.2", "fd00::2"), ("10.1.2.0/24", "fd00::/64"))
    assert "hook postrouting priority srcnat + 10" in rules
    assert 'oifname != { "lo", "tap" } ip saddr 10.1.2.0/24 drop' in rules
    assert 'oifname != { "lo", "tap" } ip6 saddr fd00::/64 drop' in rules


def test_a_card_sends_and_answers_only_from_its_assigned_addresses() -> None:
    assert (
        f"ether saddr != {MAC} drop",
        "meta protocol { 0x8100, 0x88a8, 0x9100 } drop",
        f"arp saddr ether != {MAC} drop",
        "ip saddr != { 0.0.0.0, 10.1.2.3 } drop",
        "arp saddr ip != { 0.0.0.0, 10.1.2.3 } drop",
        "ip6 saddr != { ::, fe80::/10, fd00::3 } drop",
        "icmpv6 type nd-neighbor-advert icmpv6 taddr != { ::, fe80::/10, fd00::3 } drop",
    ) == GIVEN


def test_a_family_without_an_address_is_closed_unless_the_network_is_open() -> None:
    link_local = "ip6 saddr != { ::, fe80::/10 } drop"
    assert link_local in sources.frame_rules(MAC, ["10.1.2.3/24"])
    assert not any("ip6" in line for line in sources.frame_rules(MAC, ["10.1.2.3/24"], whole=False))


def test_a_card_without_an_address_may_use_any_except_the_hosts() -> None:
    rules = bridged_nic.rules(TAKEN, CLOSED, any_sender=True)
    for hosts in ("@closed_hosts", "{ 10.1.2.1/32 }"):
        assert f"ip saddr {hosts} drop" in rules
        assert f"arp saddr ip {hosts} drop" in rules
    assert "!= { 0.0.0.0" not in rules
    assert f"ether saddr != {MAC} drop" in rules


def test_a_card_on_a_wire_sends_from_any_address() -> None:
    hidden = bridged_nic.rules(TAKEN, CLOSED, hidden=True)
    assert not any(line in hidden for line in GIVEN)
    assert all(line in bridged_nic.rules(TAKEN, CLOSED) for line in GIVEN)
