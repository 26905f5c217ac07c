"""Three etcd members: when the network separates the leader, the majority continues and the minority refuses."""

from collections.abc import Mapping

import pytest

from pytest_virtainers import VM, Network

# Without KVM, a member may need seconds to answer, which is no reason to elect another leader.
SETTINGS = """
ETCD_NAME={name}
ETCD_INITIAL_CLUSTER=one=http://one:2380,two=http://two:2380,three=http://three:2380
ETCD_INITIAL_ADVERTISE_PEER_URLS=http://{name}:2380
ETCD_LISTEN_PEER_URLS=http://0.0.0.0:2380
ETCD_HEARTBEAT_INTERVAL=500
ETCD_ELECTION_TIMEOUT=5000
"""


def forget_the_first_start(vm: VM) -> None:
    """Keep etcd installed, but remove the single-member cluster that its package has started."""
    vm.run("systemctl disable --now etcd && rm -rf /var/lib/etcd/default", sudo=True)


pytestmark = [
    pytest.mark.thorough,  # installing a package takes minutes without KVM; examples/load_balancer does the same
    pytest.mark.virtainer("one"),
    pytest.mark.virtainer("two"),
    pytest.mark.virtainer("three"),
    pytest.mark.virtainer(
        ram="512M", disk="3G", packages=["etcd-server", "etcd-client"], prepare=forget_the_first_start
    ),
]


@pytest.fixture
def members(vms: Mapping[str, VM]) -> list[VM]:
    for name, vm in vms.items():
        vm.write_text("/etc/default/etcd", SETTINGS.format(name=name))
        vm.run("systemctl start --no-block etcd", sudo=True)
    for vm in vms.values():
        vm.wait_until_succeeds("etcdctl endpoint health")
    return list(vms.values())


def leads(member: VM) -> bool:
    return member.run("etcdctl endpoint status").stdout.split(", ")[4] == "true"


def own_copy(member: VM) -> str:
    """Return the value on the member's own disk, whether the others agree or not."""
    return member.run("etcdctl get color --print-value-only --consistency=s").stdout


def test_the_majority_continues_without_the_leader(members: list[VM], virtainer_network: Network) -> None:
    leader = next(member for member in members if leads(member))
    first, second = (member for member in members if member is not leader)
    leader.run("etcdctl put color red")

    with virtainer_network.partition({first, second}, {leader}):
        first.wait_until_succeeds("etcdctl put color blue")
        assert second.run("etcdctl get color --print-value-only").stdout == "blue\n"
        assert not leader.run("etcdctl put color green", check=False)
        assert not leader.run("etcdctl get color", check=False)
        assert own_copy(leader) == "red\n"

    leader.wait_until_succeeds("etcdctl endpoint health")
    assert own_copy(leader) == "blue\n"
