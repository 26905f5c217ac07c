"""Docker in two machines: their containers have the same addresses, and reach each other by the machines' names."""

from collections.abc import Mapping

import pytest

from pytest_virtainers import VM


def serve(vm: VM) -> None:
    """Make an image of a single program, without a registry; its container keeps running in every clone."""
    vm.wait_for_unit("docker")
    vm.run("""tar -C /usr/bin -c busybox | docker import -c 'ENTRYPOINT ["/busybox"]' - busybox""", sudo=True)
    vm.run("docker run --detach --publish 80:80 --volume /srv:/srv busybox httpd -f -h /srv", sudo=True)


pytestmark = [
    pytest.mark.thorough,
    pytest.mark.virtainer("left"),
    pytest.mark.virtainer("right"),
    pytest.mark.virtainer(
        ram="512M",
        disk="4G",
        user_data={"apt": {"conf": 'APT::Install-Recommends "false";'}},
        packages=["docker.io", "docker-cli", "busybox-static"],
        prepare=serve,
    ),
]


def test_containers_of_two_machines_talk(vms: Mapping[str, VM]) -> None:
    left, right = vms["left"], vms["right"]
    for name, vm in vms.items():
        assert " 172.17.0.1/16 " in vm.run("ip address show dev docker0").stdout
        vm.write_text("/srv/index.html", f"the container in {name}\n")

    assert left.run("curl -fsS http://right/").stdout == "the container in right\n"
    fetch = "docker run --rm busybox wget -q -O - http://{}/"
    assert left.run(fetch.format("right"), sudo=True).stdout == "the container in right\n"
    assert right.run(fetch.format(left.ip), sudo=True).stdout == "the container in left\n"
