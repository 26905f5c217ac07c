"""Rules for what is closed to the guest, in their order."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from virtainer import bridged_nic, isolation, network
from virtainer.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

SETTINGS = Settings.from_env(
    {"CLOSED_NETWORKS": "10.0.0.0/8,10.1.0.0/16,192.168.0.0/16,fc00::/7", "CLOSED_HOSTS": "203.0.113.7,fd00::7"}
)
CLOSED = isolation.closed(SETTINGS, {"10.9.0.1", "fd00:6::1"}, {"10.9.0.0/24", "fd00:6::/64"})


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines()]


def test_nothing_is_closed_by_default() -> None:
    assert isolation.look(Settings.from_env({})) is None
    assert isolation.rules(None, "tap") == ""


def test_hosts_are_refused_then_own_networks_pass_then_others_are_refused() -> None:
    rules = lines(isolation.rules(CLOSED, "tap", inner=["192.168.100.1/24"]))
    wanted = [
        "set closed_hosts { type ipv4_addr; flags interval; elements = { 203.0.113.7/32 }; }",
        "set closed_networks { type ipv4_addr; flags interval; elements = { 10.0.0.0/8, 192.168.0.0/16 }; }",
        "ct state established,related accept",
        'iifname "tap" ip daddr @closed_hosts reject with icmpx admin-prohibited',
        'iifname "tap" ip daddr { 10.9.0.1/32 } reject with icmpx admin-prohibited',
        'iifname "tap" ip daddr { 10.9.0.0/24, 192.168.100.0/24 } accept',
        'iifname "tap" ip daddr @closed_networks reject with icmpx admin-prohibited',
    ]
    assert [rules.index(each) for each in wanted] == sorted(rules.index(each) for each in wanted)


def test_closed_networks_cannot_connect_but_allowed_hosts_can() -> None:
    rules = lines(isolation.rules(CLOSED, "tap", inner=["192.168.100.1/24"]))
    closed = rules.index('oifname "tap" ip saddr @closed_networks drop')
    for friends in ("{ 10.9.0.0/24, 192.168.100.0/24 }", "{ 10.9.0.1/32 }", "@closed_hosts"):
        assert rules.index(f'oifname "tap" ip saddr {friends} accept') < closed


def test_ipv6_is_treated_alike() -> None:
    rules = lines(isolation.rules(CLOSED, "tap"))
    assert "set closed_hosts6 { type ipv6_addr; flags interval; elements = { fd00::7/128 }; }" in rules
    assert "set closed_networks6 { type ipv6_addr; flags interval; elements = { fc00::/7 }; }" in rules
    for hosts in ("@closed_hosts6", "{ fd00:6::1/128 }", "@closed_networks6"):
        assert f'iifname "tap" ip6 daddr {hosts} reject with icmpx admin-prohibited' in rules
    assert 'iifname "tap" ip6 daddr { fd00:6::/64 } accept' in rules


def test_a_card_neither_sends_to_closed_hosts_nor_resolves_them() -> None:
    rules = isolation.frame_rules(CLOSED).sent
    for hosts in ("@closed_hosts", "{ 10.9.0.1/32 }"):
        assert {f"ip daddr {hosts} drop", f"arp daddr ip {hosts} drop"} < set(rules)
    for hosts in ("@closed_hosts6", "{ fd00:6::1/128 }"):
        assert f"icmpv6 type nd-neighbor-solicit icmpv6 taddr {hosts} drop" in rules
    assert "10.0.0.0/8" not in str(rules), "machines on one network may have any addresses"


def test_the_engines_host_is_closed_by_its_mac_which_may_be_learnt() -> None:
    rules = isolation.frame_rules(CLOSED, ["02:42:00:00:00:01"])
    assert rules.sets[0] == "set host { type ether_addr; size 64; flags dynamic; elements = { 02:42:00:00:00:01 }; }"
    assert rules.sent[0] == "ether daddr @host drop"
    assert rules.received == tuple(
        f"arp saddr ip {hosts} add @host {{ ether saddr }}" for hosts in ("@closed_hosts", "{ 10.9.0.1/32 }")
    )
    assert "elements" not in isolation.frame_rules(CLOSED).sets[0]


def test_closed_rules_come_before_forwarding() -> None:
    rules = bridged_nic.rules(bridged_nic.Taken("02:42:0a:01:02:03", "eth1", (), 1500), CLOSED)
    to_guest, from_guest = rules.partition("chain from_guest")[::2]
    assert from_guest.index("arp daddr ip") < from_guest.index('fwd to "eth1"')
    assert to_guest.index("set host") < to_guest.index("add @host") < to_guest.index('fwd to "vt')
    assert isolation.frame_rules(None) == ((), (), ())


def test_hosts_can_be_closed_without_networks() -> None:
    settings = Settings.from_env({"CLOSED_HOSTS": "203.0.113.7"})
    rules = isolation.rules(isolation.closed(settings, {"10.9.0.1"}, {"10.9.0.0/24"}), "tap")
    assert "elements = { 203.0.113.7/32 }" in rules
    assert "set closed_networks { type ipv4_addr; flags interval; }" in rules


def test_a_gateway_that_is_not_the_host_stays_open(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(isolation, "_RECORD", tmp_path / "closed.json")
    monkeypatch.setattr(network, "neighbours", lambda _routes: {"10.9.0.1"})
    given = {"CLOSED_NETWORKS": "169.254.0.0/16"}
    for gateway, hosts in (("on", ["10.9.0.1/32"]), ("off", [])):
        look = isolation.look(Settings.from_env({**given, "CLOSED_GATEWAY": gateway}))
        assert look is not None
        assert [str(each) for each in look.neighbours if each.version == 4] == hosts


LISTED = [
    {"family": "inet", "table": "virtainer-closed", "name": "closed_hosts"},
    {"family": "inet", "table": "virtainer-closed", "name": "closed_networks6"},
    {"family": "netdev", "table": "virtainer-02420a010203", "name": "host"},
    {"family": "netdev", "table": "virtainer-02420a010203", "name": "closed_hosts"},
    {"family": "inet", "table": "engine", "name": "closed_hosts"},
]


def test_the_lists_are_replaced_in_each_of_our_tables_and_in_no_other() -> None:
    assert isolation.replacement(LISTED, ["10.0.0.0/8"], ["203.0.113.9"]).splitlines() == [
        "flush set inet virtainer-closed closed_hosts",
        "add element inet virtainer-closed closed_hosts { 203.0.113.9/32 }",
        "flush set inet virtainer-closed closed_networks6",
        "flush set netdev virtainer-02420a010203 closed_hosts",
        "add element netdev virtainer-02420a010203 closed_hosts { 203.0.113.9/32 }",
    ]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Record the input of programs, in a container to which a network is closed."""
    given: list[str] = []

    def run(*argv: str, stdin: str = "") -> str:
        given.append(stdin)
        return json.dumps({"nftables": [{"metainfo": {}}, *({"set": each} for each in LISTED)]}) if not stdin else ""

    monkeypatch.setattr(isolation, "run", run)
    monkeypatch.setattr(isolation, "_RECORD", tmp_path / "closed.json")
    monkeypatch.setattr(isolation, "_LOCK", tmp_path / "closed.lock")
    monkeypatch.setenv("CLOSED_NETWORKS", "192.168.0.0/16")
    return given


def test_later_rules_use_the_new_lists(run: list[str]) -> None:
    assert isolation.main(['{"networks": ["10.0.0.0/8"], "hosts": ["203.0.113.9", "fd00::9"]}']) == 0
    assert "add element inet virtainer-closed closed_hosts { 203.0.113.9/32 }" in run[-1]
    look = isolation.look(Settings.from_env({"CLOSED_HOSTS": "203.0.113.7"}))
    assert look is not None
    assert [str(each) for each in (*look.networks, *look.hosts)] == ["10.0.0.0/8", "203.0.113.9/32", "fd00::9/128"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "usage: closed '{"),
        (["{"], 2, "closed: Expecting property name"),
        (['{"hosts": []}'], 2, "closed: expected a JSON object with networks and hosts"),
        (['{"networks": ["10.0.0.1/8"], "hosts": []}'], 2, "closed: 10.0.0.1/8 has host bits set"),
        (['{"networks": [], "hosts": 5}'], 2, "closed: 'int' object is not iterable"),
    ],
)
def test_invalid_lists_change_nothing(
    run: list[str], capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, said: str
) -> None:
    assert isolation.main(arguments) == code
    assert capsys.readouterr().err.startswith(said)
    assert run == []


def test_lists_cannot_be_added_where_nothing_is_closed(
    run: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CLOSED_NETWORKS")
    assert isolation.main(['{"networks": [], "hosts": []}']) == 1
    assert capsys.readouterr().err == (
        "closed: nothing is closed to this VM: start it with CLOSED_NETWORKS or CLOSED_HOSTS\n"
    )
    assert run == []
