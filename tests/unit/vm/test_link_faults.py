"""Faults between VMs: what is sent to the containers, and what their answers lead to."""

from typing import Any

import pytest

from pytest_virtainers.errors import VirtainerError
from pytest_virtainers.vm.network import Network
from tests.unit.vm.fake_network import EMPTY, MACS, FakeVM


def test_partition_works_in_both_directions_and_ends_with_its_block(network: Network, vms: dict[str, Any]) -> None:
    a, b, c = vms.values()
    with network.partition({a, b}, c):
        assert a.drops == b.drops == {MACS["c"]: 1000}
        assert c.drops == {MACS["a"]: 1000, MACS["b"]: 1000}
    assert [vm.container.sent[-1] for vm in (a, b, c)] == [(mac, EMPTY) for mac in MACS.values()]


def test_faults_add_up_and_end_separately(network: Network, vms: dict[str, Any]) -> None:
    a, b, c = vms.values()
    with network.lose(a, b, share=0.25):
        assert b.drops == {MACS["a"]: 250}
        assert not a.container.sent
        with network.partition({b}, {a, c}), network.slow(b, rate="2Mbit"):
            assert b.container.sent[-1][1] == {
                **EMPTY,
                "drop": {MACS["a"]: 1000, MACS["c"]: 1000},
                "rate_kbit": 2000,
            }
        assert b.drops == {MACS["a"]: 250}
    assert b.container.sent[-1][1] == EMPTY


def test_heal_ends_all_faults(network: Network, vms: dict[str, Any]) -> None:
    a, b, _ = vms.values()
    with network.partition(a, b):
        network.heal()
        assert a.drops == b.drops == {}
        sent = len(a.container.sent)
    assert len(a.container.sent) == sent, "a healed fault has no end of its own"


def test_a_fault_that_the_kernel_refuses_leaves_nothing(network: Network, vms: dict[str, Any]) -> None:
    a, b, _ = vms.values()
    b.container.refuses = True
    said = r"^b on the network lab: the host's kernel has no sch_netem$"
    with pytest.raises(VirtainerError, match=said), network.slow(delay=0.1):
        raise AssertionError
    assert a.container.sent[-1][1] == EMPTY


def test_a_vm_that_left_has_no_faults(network: Network, vms: dict[str, Any]) -> None:
    a, b, _ = vms.values()
    with network.partition(a, b):
        a.container.ended = True
        for each in a.left:
            each()
        assert b.drops == {}
    assert a not in network.vms


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda net, vms: net.partition({vms["a"]}), "two or more groups of VMs, and each VM in one"),
        (lambda net, vms: net.partition({vms["a"]}, {vms["a"], vms["b"]}), "and each VM in one of them"),
        (
            lambda net, vms: net.partition(vms["a"], FakeVM("stranger")),
            "stranger has no card on the network lab; its first one is on",
        ),
        (
            lambda net, vms: net.lose(FakeVM("stranger"), vms["a"]),
            "stranger has no card on the network lab; its first one is on",
        ),
        (lambda net, vms: net.lose(vms["a"], vms["b"], share=0), "a share from 0.001 to 1 is needed"),
        (lambda net, _vms: net.slow(), "needs a rate or a delay"),
        (lambda net, _vms: net.slow(rate="fast"), "text such as 512kbit, 10Mbit or 1Gbit"),
    ],
)
def test_wrong_arguments_of_faults_are_refused(network: Network, vms: dict[str, Any], wrong: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words), wrong(network, vms):
        raise AssertionError
    assert not any(vm.container.sent for vm in vms.values())
