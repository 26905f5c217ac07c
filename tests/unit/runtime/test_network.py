"""The input of the programs that configure the guest's network."""

from __future__ import annotations

import pytest
from virtainer import network
from virtainer.exit_reasons import End, Reason
from virtainer.network import Network
from virtainer.tools import ToolError

NETWORK = Network("10.1.2", "alpha", mtu=1450, uplink="eth0")
# As on a container with 172.17.0.3/16 and 10.9.0.2/24 (/proc/net/route).
ROUTES = """\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth1\t0000090A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
eth0\t00000000\t010011AC\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
"""
HEADER = ROUTES.splitlines(keepends=True)[0]
INTERNAL = "".join(ROUTES.splitlines(keepends=True)[:2])


def test_link_commands() -> None:
    tap = [
        "link set dev virtainer0 address 52:54:00:76:69:01",
        "addr add 10.1.2.1/24 dev virtainer0",
        "link set dev virtainer0 mtu 1450 up",
    ]
    soon = "ntable change name arp_cache dev eth0 base_reachable 200 delay_probe 50 retrans 50 locktime 0"
    assert network.link_commands(NETWORK).splitlines() == [*tap, soon]
    assert network.link_commands(NETWORK._replace(uplink=None)).splitlines() == tap


def test_packets_of_all_protocols_go_to_the_guest() -> None:
    rules = [line.strip() for line in network.nft_rules(NETWORK, set()).splitlines()]
    assert 'iifname != "lo" fib daddr type local dnat to 10.1.2.2' in rules
    assert rules.index("ip daddr 10.1.2.1 accept") < rules.index(
        'iifname != "lo" fib daddr type local dnat to 10.1.2.2'
    )


def test_the_rules_are_in_a_separate_table() -> None:
    text = network.nft_rules(NETWORK, set())
    assert text.startswith("table ip virtainer {")
    assert "flush" not in text


def test_packets_of_the_guest_are_masqueraded_even_to_itself() -> None:
    text = network.nft_rules(NETWORK, set())
    assert 'oifname != { "lo", "virtainer0" } ip saddr 10.1.2.0/24 masquerade' in text
    assert 'oifname "virtainer0" ip saddr 10.1.2.2 masquerade' in text


def test_dhcp_always_offers_the_same_address_with_name_and_mtu() -> None:
    argv = network.dnsmasq_argv(NETWORK, 5300)
    assert "--dhcp-host=52:54:00:76:69:02,10.1.2.2,alpha,infinite" in argv
    assert "--dhcp-option=option:mtu,1450" in argv
    assert "--interface=virtainer0" in argv


def test_short_names_go_to_our_own_server() -> None:
    argv = network.dnsmasq_argv(NETWORK, 5300)
    assert "--dhcp-option=option:domain-search,virtainer.internal" in argv
    assert "--server=/virtainer.internal/127.0.0.1#5300" in argv


@pytest.mark.parametrize(
    ("cidr", "taken"),
    [("172.17.5", "172.17.0.0/16"), ("10.9.0", "10.9.0.0/24"), ("192.168.100", None), ("10.9.1", None)],
)
def test_overlap_with_the_networks_of_the_container(cidr: str, taken: str | None) -> None:
    assert network.overlap(cidr, ROUTES) == taken


def test_the_uplink_has_the_default_route() -> None:
    assert network.default_link(ROUTES) == "eth0"
    assert network.default_link(INTERNAL) == "eth1"
    assert network.default_link(INTERNAL + INTERNAL.splitlines()[1].replace("eth1", "eth0")) == "eth0"
    assert network.default_link(HEADER) is None


def test_the_network_of_a_host_is_recognized() -> None:
    assert not network.looks_like_host({"lo": False, "eth0": False})
    assert network.looks_like_host({"lo": False, "enp1s0": True})
    assert network.looks_like_host({"lo": False, "eth0": False, "docker0": False})


def test_the_engines_host_is_the_gateway_or_the_first_address() -> None:
    assert network.neighbours(ROUTES) == {"172.17.0.1", "10.9.0.1"}
    assert network.neighbours(INTERNAL) == {"10.9.0.1"}
    way_out = "eth0\t00000000\tFE0011AC\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
    assert "172.17.0.254" in network.neighbours(HEADER + way_out)
    assert network.neighbours(HEADER) == set()


def test_the_containers_own_networks_are_those_without_a_gateway() -> None:
    inner = "virtainer0\t0064A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
    assert network.connected(ROUTES + inner) == {"172.17.0.0/16", "10.9.0.0/24"}
    assert "192.168.100.1" not in network.neighbours(ROUTES + inner)


def test_names_only_uses_no_other_dns_server() -> None:
    argv = network.dnsmasq_argv(NETWORK, 5300, names_only=True)
    assert {"--no-resolv", "--server=//127.0.0.1#5300", "--server=/virtainer.internal/127.0.0.1#5300"} < set(argv)
    assert "--no-resolv" not in network.dnsmasq_argv(NETWORK, 5300)


def test_ipv6_is_added_where_the_container_has_it() -> None:
    both = NETWORK._replace(ipv6=True)
    commands = network.link_commands(both).splitlines()
    up = commands.index("link set dev virtainer0 mtu 1450 up")
    assert commands.index("addr add fd76:6972:7461::1/64 dev virtainer0 nodad") < up
    assert (
        "ntable change name ndisc_cache dev eth0 base_reachable 200 delay_probe 50 retrans 50 locktime 0" in commands
    )
    rules = network.nft_rules(both, set())
    assert 'iifname != "lo" fib daddr type local dnat to fd76:6972:7461::2' in rules
    assert 'oifname != { "lo", "virtainer0" } ip6 saddr fd76:6972:7461::/64 masquerade' in rules
    argv = network.dnsmasq_argv(both, 5300)
    assert "--dhcp-host=52:54:00:76:69:02,10.1.2.2,[fd76:6972:7461::2],alpha,infinite" in argv
    assert "--dhcp-range=fd76:6972:7461::,static,64" in argv
    for text in (network.link_commands(NETWORK), network.nft_rules(NETWORK, set())):
        assert "to fd76" not in text
        assert "addr add fd76" not in text
        assert "table ip6" not in text


def test_callers_of_the_ssh_port_are_accepted_before_the_rest_is_forwarded() -> None:
    rules = network.nft_rules(NETWORK, {"172.17.0.1", "10.9.0.1"})
    to_line = "ip saddr { 10.9.0.1, 172.17.0.1 } tcp dport 50022 accept\n"
    assert rules.index(to_line) < rules.index("dnat to")
    assert "dport" not in network.nft_rules(NETWORK, set())


def test_a_refused_rule_is_reported_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*argv: str, stdin: str) -> str:
        raise ToolError("nft -f failed (1): Operation not permitted", 1)

    monkeypatch.setattr(network, "run", refuse)
    with pytest.raises(End, match="cannot set up the guest's network: nft -f failed") as caught:
        network.build(NETWORK, set())
    assert caught.value.reason is Reason.NETWORK


def test_the_default_route_can_be_restored() -> None:
    assert network.way_out(ROUTES) == "route replace default via 172.17.0.1 dev eth0 metric 0\n"
    assert network.way_out(INTERNAL) == ""
