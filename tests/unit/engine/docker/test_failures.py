import pytest

from pytest_virtainers.engine.docker.failures import explain


def test_known_errors_have_a_remedy() -> None:
    said = explain(RuntimeError("crun: error setting rlimit type 8: Operation not permitted"))
    assert 'default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]' in said
    assert explain(RuntimeError("something else")) == "something else"


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("failed to allocate gateway (172.17.0.1): Address already in use", "choose another subnet"),
        ("subnet 172.17.0.0/16 is already used on the host or by another config", "choose another subnet"),
        ("Address already in use", "ask for another one (ip)"),
        ("IPAM error: requested ip address 10.1.0.9 is already allocated to container ID c2dd", "another one (ip)"),
        ("invalid subinterface vlan name nope0, example formatting is eth0.10", "correct parent"),
        ("parent interface nope0 does not exist", "correct parent"),
        ('slirp4netns failed: "open(\\"/dev/net/tun\\"): Permission denied', "chmod 666 /dev/net/tun"),
        ("netavark: Netlink error: No such device (os error 19)", "A rootless engine does not see the host's"),
    ],
)
def test_network_errors_have_a_remedy(said: str, remedy: str) -> None:
    assert remedy in explain(RuntimeError(said)).removeprefix(said)
