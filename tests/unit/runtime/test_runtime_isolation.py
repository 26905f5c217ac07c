"""What is closed to the guest: the rules, in their order."""

from __future__ import annotations

from virtainer import isolation, joined
from virtainer.settings import Settings

SETTINGS = Settings.from_env(
    {"CLOSED_NETWORKS": "10.0.0.0/8,10.1.0.0/16,192.168.0.0/16,fc00::/7", "CLOSED_HOSTS": "203.0.113.7,fd00::7"}
)
CLOSED = isolation.closed(SETTINGS, {"10.9.0.1", "fd00:6::1"}, {"10.9.0.0/24", "fd00:6::/64"})


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines()]


def test_nothing_is_closed_by_itself() -> None:
    assert isolation.look(Settings.from_env({})) is None
    assert isolation.rules(None, "tap") == ""


def test_hosts_are_refused_then_the_own_networks_pass_then_the_others_are_refused() -> None:
    rules = lines(isolation.rules(CLOSED, "tap", inner=["192.168.100.1/24"]))
    wanted = [
        "ct state established,related accept",
        'iifname "tap" ip daddr { 10.9.0.1/32, 203.0.113.7/32 } reject with icmpx admin-prohibited',
        'iifname "tap" ip daddr { 10.9.0.0/24, 192.168.100.0/24 } accept',
        'iifname "tap" ip daddr { 10.0.0.0/8, 192.168.0.0/16 } reject with icmpx admin-prohibited',
    ]
    assert [rules.index(each) for each in wanted] == sorted(rules.index(each) for each in wanted)


def test_strangers_of_closed_networks_are_kept_out_but_not_those_who_may_log_in() -> None:
    rules = lines(isolation.rules(CLOSED, "tap", inner=["192.168.100.1/24"]))
    friends = 'oifname "tap" ip saddr { 10.9.0.0/24, 192.168.100.0/24, 203.0.113.7/32 } accept'
    assert rules.index(friends) < rules.index('oifname "tap" ip saddr { 10.0.0.0/8, 192.168.0.0/16 } drop')


def test_ipv6_is_treated_alike() -> None:
    rules = lines(isolation.rules(CLOSED, "tap"))
    assert 'iifname "tap" ip6 daddr { fd00::7/128, fd00:6::1/128 } reject with icmpx admin-prohibited' in rules
    assert 'iifname "tap" ip6 daddr { fd00:6::/64 } accept' in rules
    assert 'iifname "tap" ip6 daddr { fc00::/7 } reject with icmpx admin-prohibited' in rules


def test_a_card_sends_nothing_to_closed_hosts_and_does_not_ask_for_them() -> None:
    rules = isolation.frame_rules(CLOSED).sent
    hosts = "{ 10.9.0.1/32, 203.0.113.7/32 }"
    assert {f"ip daddr {hosts} drop", f"arp daddr ip {hosts} drop"} < set(rules)
    assert "icmpv6 type nd-neighbor-solicit icmpv6 taddr { fd00::7/128, fd00:6::1/128 } drop" in rules
    assert "10.0.0.0/8" not in str(rules), "machines on one network may have any addresses"


def test_the_engines_host_is_closed_by_its_mac_which_may_be_learnt() -> None:
    rules = isolation.frame_rules(CLOSED, ["02:42:00:00:00:01"])
    assert rules.sets == ("set host { type ether_addr; size 64; flags dynamic; elements = { 02:42:00:00:00:01 }; }",)
    assert rules.sent[0] == "ether daddr @host drop"
    assert rules.received == ("arp saddr ip { 10.9.0.1/32, 203.0.113.7/32 } add @host { ether saddr }",)
    assert "elements" not in isolation.frame_rules(CLOSED).sets[0]


def test_what_is_closed_comes_before_a_cards_frames_are_passed_on() -> None:
    rules = joined.rules(joined.Taken("02:42:0a:01:02:03", "eth1", (), 1500), CLOSED)
    to_guest, from_guest = rules.partition("chain from_guest")[::2]
    assert from_guest.index("arp daddr ip") < from_guest.index('fwd to "eth1"')
    assert to_guest.index("set host") < to_guest.index("add @host") < to_guest.index('fwd to "vt')
    assert isolation.frame_rules(None) == ((), (), ())


def test_hosts_alone_may_be_closed() -> None:
    settings = Settings.from_env({"CLOSED_HOSTS": "203.0.113.7"})
    rules = isolation.rules(isolation.closed(settings, {"10.9.0.1"}, {"10.9.0.0/24"}), "tap")
    assert "ip daddr { 10.9.0.1/32, 203.0.113.7/32 } reject" in rules
    assert "drop" not in rules
