"""Guests have what markers, options and `virtainer_defaults` request; and lifetimes of VMs."""

import hashlib
from pathlib import Path

import pytest

from pytest_virtainers import VM
from pytest_virtainers.engine.docker.engine import DockerEngine
from tests.vm.shapes import FULL, LARGE


@pytest.mark.virtainer("node-1", **FULL)
def test_the_guest_has_everything_that_a_marker_requests(vm: VM) -> None:
    facts = vm.run(
        "hostname; nproc; id -un; getent passwd bob | cut -d: -f7; readlink /etc/localtime; "
        "stat -c %s /etc/motd.d/note; cat '/srv/a b/c'; echo; cat /srv/ran; ls '/srv/a file'"
    ).stdout.splitlines()
    assert facts[:4] == ["by-user-data", "2", "alice", "/bin/bash"]
    assert facts[4].endswith("Europe/Berlin")
    assert facts[5:] == ["3", "text", f"42 root {len(LARGE)} 644 root", "/srv/a file"]
    assert vm.run("sha256sum </srv/large").stdout.split()[0] == hashlib.sha256(LARGE).hexdigest()
    ram_mib = int(vm.run("awk '/MemTotal/ {print int($2/1024)}' /proc/meminfo").stdout)
    disk_mib = int(vm.run("df --output=size -BM / | tail -n1").stdout.strip().rstrip("M"))
    assert 500 < ram_mib <= 640
    assert disk_mib > 19000
    # No route: neither to the internet nor to the engine's host behind the network's gateway.
    assert not vm.run(["ping", "-c", "1", "-W", "5", "192.0.2.1"], sudo=True, check=False)
    assert not vm.run("getent ahostsv4 example.org", check=False)


def test_scopes_defaults_and_factories_work_together(pytester: pytest.Pytester, engine: DockerEngine) -> None:
    pytester.makeconftest(
        """
        import pytest

        @pytest.fixture(scope="session")
        def virtainer_defaults():
            return {"name": "of-class", "ram": "512M", "disk": "3G", "cpus": 2}
        """
    )
    pytester.makepyfile(
        """
        import pytest

        class TestShared:
            @pytest.mark.virtainer(scope="class")
            def test_a(self, vm):
                vm.run("touch /run/lock/a")
                assert vm.spec.ram == 512

            @pytest.mark.virtainer(scope="class")
            def test_b(self, vm):
                vm.run("test -e /run/lock/a")
                assert vm.run("hostname").stdout == "of-class\\n"

        def test_gone_after_its_class(vm_factory):
            import docker
            other = vm_factory("other")
            labels = [c["Labels"]["virtainers.vm"] for c in
                      other.machine.container._api.containers(filters={"label": "virtainers=vm"})
                      if c["Labels"].get("virtainers.owner-pid") == str(__import__("os").getpid())]
            assert labels == ["other"]
            assert "unknown argument" in str(pytest.raises(Exception, vm_factory, "x", memory="1G").value)
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-W", "error", "--virtainer-ram=2G")
    result.assert_outcomes(passed=3)
    left = [
        each["Labels"].get("virtainers.vm")  # containers of the tests of the runtime image have none
        for each in engine.api.containers(all=True, filters={"label": "virtainers=vm"})
    ]
    assert "of-class" not in left
    assert "other" not in left


@pytest.mark.thorough
@pytest.mark.virtainer(image="debian-12", disk="3G")
def test_debian_12(vm: VM, tmp_path: Path) -> None:
    assert vm.run(". /etc/os-release; echo $VERSION_CODENAME").stdout == "bookworm\n"
    assert vm.run("systemctl is-system-running --wait", check=False, timeout=120).stdout == "running\n"
    vm.run(["modprobe", "dummy"], sudo=True)
