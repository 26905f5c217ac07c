"""Docker in two machines: their containers have the same addresses, and talk by the names of the machines."""

from collections.abc import Mapping

import pytest

from pytest_virtainers import VM


def make_an_image(vm: VM) -> None:
    """Make the image `busybox` out of a single program: no registry is needed."""
    vm.wait_for_unit("docker")
    vm.run("""tar -C /usr/bin -c busybox | docker import -c 'ENTRYPOINT ["/busybox"]' - busybox""", sudo=True)


pytestmark = [
    pytest.mark.virtainer("left"),
    pytest.mark.virtainer("right"),
    pytest.mark.virtainer(
        ram="512M",
        disk="4G",
        user_data={"apt": {"conf": 'APT::Install-Recommends "false";'}},
        packages=["docker.io", "docker-cli", "busybox-static"],
        prepare=make_an_image,
    ),
]


def test_containers_of_two_machines_talk(vms: Mapping[str, VM]) -> None:
    left, right = vms["left"], vms["right"]
    for vm in vms.values():
        vm.write_text("/srv/index.html", f"the container in {vm.name}\n")
        vm.run("docker run --detach --publish 80:80 --volume /srv:/srv busybox httpd -f -h /srv", sudo=True)
        addresses = vm.run("docker run --rm busybox ip -4 address show dev eth0", sudo=True).stdout
        assert " 172.17.0.3/16 " in addresses

    assert left.run("curl -fsS http://right/").stdout == "the container in right\n"
    fetch = "docker run --rm busybox wget -q -O - http://{}/"
    assert left.run(fetch.format("right"), sudo=True).stdout == "the container in right\n"
    assert right.run(fetch.format(left.ip), sudo=True).stdout == "the container in left\n"
