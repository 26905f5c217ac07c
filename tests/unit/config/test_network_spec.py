"""The marker's arguments `network`, `ip` and `nics`: their values, and the messages for wrong ones."""

import re
from ipaddress import IPv4Address, IPv4Network

import pytest

from pytest_virtainers.config import network_spec
from pytest_virtainers.config.network_spec import NetworkSpec, NicSpec
from pytest_virtainers.config.settings import resolve
from pytest_virtainers.config.spec import check, merge
from pytest_virtainers.errors import SpecError


def test_a_name_is_enough_for_a_network() -> None:
    assert network_spec.network("lab") == network_spec.network({"name": "lab"}) == NetworkSpec("lab")


def test_a_network_can_be_described() -> None:
    described = {"name": "lab", "mode": "routed", "subnet": "10.50.0.0/24", "ipv6": "on"}
    assert network_spec.network(described) == NetworkSpec("lab", "routed", IPv4Network("10.50.0.0/24"), ipv6=True)
    assert network_spec.network({"name": "db", "mode": "existing", "source": "stack_db"}).source == "stack_db"
    wire = {"name": "lan", "mode": "macvlan", "parent": "eth1", "subnet": "10.50.0.0/24"}
    assert network_spec.network(wire).parent == "eth1"


def test_internet_chooses_the_mode_that_is_not_given() -> None:
    assert NetworkSpec("lab").of_first_card(internet=True) == NetworkSpec("lab", "nat")
    assert NetworkSpec("lab").of_first_card(internet=False) == NetworkSpec("lab", "isolated")
    assert NetworkSpec("lab", "nat").of_first_card(internet=False) == NetworkSpec("lab", "nat")
    assert NetworkSpec("lab").of_more_cards() == NetworkSpec("lab", "wire")
    assert NetworkSpec("lab", "nat").of_more_cards() == NetworkSpec("lab", "nat")


MODES = "allowed are nat, isolated, wire, routed, macvlan, existing"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("-lab", "a host name of 1 to 63 characters"),
        (7, "a network is a name, or a mapping with name, mode, subnet, ipv6, parent, source"),
        ({}, "a network needs a name, by which VMs meet on it"),
        ({"name": "Lab"}, "name='Lab': a host name of 1 to 63 characters"),
        (
            {"name": "lab", "mod": "nat"},
            "a network has no 'mod'; did you mean 'mode'? allowed are name, mode, subnet",
        ),
        ({"name": "lab", "size": 5}, "a network has no 'size'; allowed are name, mode, subnet, ipv6, parent, source"),
        ({"name": "lab", "mode": "bridge"}, f"mode='bridge': {MODES}"),
        (
            {"name": "lab", "subnet": "10.50.0.1/24"},
            "subnet='10.50.0.1/24': an IPv4 network is needed, such as 10.50.0.0/24 (10.50.0.1/24 has host bits set)",
        ),
        ({"name": "lab", "subnet": 10}, "subnet=10: an IPv4 network is needed, such as 10.50.0.0/24"),
        ({"name": "lab", "ipv6": "yes"}, "ipv6='yes': allowed are on and off"),
        ({"name": "lab", "parent": ""}, "parent='': text that is not empty is needed"),
        ({"name": "lab", "mode": "routed"}, "mode routed needs subnet"),
        ({"name": "lab", "mode": "macvlan", "subnet": "10.50.0.0/24"}, "mode macvlan needs parent"),
        ({"name": "lab", "mode": "existing"}, "mode existing needs source"),
        ({"name": "lab", "parent": "eth0"}, "parent is for mode macvlan"),
        ({"name": "lab", "mode": "nat", "source": "x"}, "source is for mode existing"),
        (
            {"name": "lab", "mode": "existing", "source": "x", "subnet": "10.50.0.0/24"},
            "subnet is for mode nat or isolated or wire or routed or macvlan",
        ),
        (
            {"name": "lab", "mode": "macvlan", "parent": "eth0", "subnet": "10.50.0.0/24", "ipv6": True},
            "ipv6 is for mode nat or isolated or wire or routed",
        ),
    ],
    ids=str,
)
def test_wrong_networks_are_refused_with_a_suggestion(wrong: object, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        network_spec.network(wrong)


def test_a_card_is_a_network_or_has_an_address_on_it() -> None:
    lab = NetworkSpec("lab")
    assert network_spec.nics(["lab", {"name": "office", "mode": "isolated"}]) == (
        NicSpec(lab),
        NicSpec(NetworkSpec("office", "isolated")),
    )
    for written, ip in ((2, 2), ("10.50.0.9", IPv4Address("10.50.0.9")), ("dhcp", "dhcp"), ("none", "none")):
        assert network_spec.nics([{"network": "lab", "ip": written}]) == (NicSpec(lab, ip),)
    assert network_spec.nics([{"network": {"name": "lab", "mode": "nat"}}]) == (NicSpec(NetworkSpec("lab", "nat")),)


_NO_ADDRESS = "an IPv4 address is needed, or its number in the network's subnet, from 2 on"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("lab", "a list of networks is needed"),
        ([7], "a network is a name, or a mapping with name, mode"),
        (["lab", {"network": "lab", "ip": 2}], "a VM has one card on a network: lab is there twice"),
        ([{"network": "lab", "mac": "x"}], "a card has no 'mac'; allowed are network, ip"),
        ([{"network": "lab", "ipv": 2}], "a card has no 'ipv'; did you mean 'ip'? allowed are network, ip"),
        ([{"network": {"mode": "nat"}}], "network={'mode': 'nat'}: a network needs a name"),
        ([{"network": "lab", "ip": 1}], f"ip=1: auto, dhcp or none; or else {_NO_ADDRESS}"),
        ([{"network": "lab", "ip": "static"}], f"ip='static': auto, dhcp or none; or else {_NO_ADDRESS}"),
    ],
    ids=str,
)
def test_wrong_lists_of_cards_are_refused_with_a_suggestion(wrong: object, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        network_spec.nics(wrong)


@pytest.mark.parametrize("wrong", [0, 1, -2, True, "10.50.0", "10.50.0.256", "fd00::2", "", None, 2.5])
def test_wrong_addresses_are_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match=_NO_ADDRESS):
        network_spec.address(wrong)


def test_errors_name_the_marker_and_the_argument() -> None:
    with pytest.raises(SpecError, match=r"^here: nics=\[\{'network': 'lab', 'ip': 1\}\]: ip=1: auto, dhcp or none"):
        check({"nics": [{"network": "lab", "ip": 1}]}, "here")


def test_the_first_card_cannot_be_on_a_wire() -> None:
    given = check({"name": "web", "network": {"name": "lab", "mode": "wire"}}, "here")
    with pytest.raises(SpecError, match=r"^web: its first card cannot be on lab, which is a wire: that is for nics"):
        merge(resolve([]).shape, given)


def test_the_first_card_is_not_among_the_further_ones() -> None:
    defaults = resolve([]).shape
    merge(defaults, check({"network": "lab", "nics": ["default", "office"]}, "here"))
    for network, name in (("lab", "lab"), (None, "default")):
        given = check({"name": "web", "network": network, "nics": ["office", name]}, "here")
        with pytest.raises(SpecError, match=rf"^web: its first card is on the network {name} already: nics are for"):
            merge(defaults, given)


def test_the_command_line_names_a_network_of_the_engine_or_describes_one() -> None:
    existing = {"name": "my-net", "mode": "existing", "source": "My_net"}
    assert network_spec.read_network("My_net") == existing
    assert network_spec.network(existing) == NetworkSpec("my-net", "existing", source="My_net")
    assert network_spec.read_network("name=lab,ipv6=on") == {"name": "lab", "ipv6": "on"}
    cards = network_spec.read_nics(["My_net,ip=dhcp", "name=lab"])
    assert cards == [{"network": existing, "ip": "dhcp"}, {"network": {"name": "lab"}}]
    for wrong in ("", "name=lab,on", "My_net,on"):
        with pytest.raises(ValueError, match="NAME=VALUE is needed"):
            network_spec.read_network(wrong)


@pytest.mark.parametrize(("wrong", "key"), [({"name": "lab", "mod": 1}, "mod"), ({"name": "lab", "mode": 1}, "mode")])
def test_errors_about_one_key_name_it(wrong: dict[str, object], key: str) -> None:
    with pytest.raises(network_spec.FieldError) as caught:
        network_spec.network(wrong)
    assert caught.value.key == key
