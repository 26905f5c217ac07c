"""Time limits for provisioning, and the errors after them."""

import re
import subprocess
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pytest_virtainers.errors import BootTimeout, ProvisionTimeout
from pytest_virtainers.support.progress import SILENT
from pytest_virtainers.vm import provision_limit, readiness
from pytest_virtainers.vm.log import CommandLog
from pytest_virtainers.vm.provision_limit import LOOK, Limit
from pytest_virtainers.vm.readiness import Target, wait_for_cloud_init
from pytest_virtainers.vm.vm import VM
from tests.unit.fake_output import FakeOutput
from tests.unit.memory import allocated
from tests.unit.vm import fake_container

SAID = b'{"stage": "modules-final"}\n\x01Unpacking ruby (1:3.3) ...\nUnpacking \x1b[1mpuppet\x1b[0m (8.4.2) ...\n\0'


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    ours = SimpleNamespace(now=1000.0)
    ours.monotonic = lambda: ours.now
    monkeypatch.setattr(provision_limit, "time", ours)
    return ours


def test_cloud_init_may_run_as_long_as_it_makes_progress(clock: SimpleNamespace) -> None:
    limit = Limit(120, "provision_timeout=120")
    for number in range(10):
        clock.now += 100
        limit.look(b"{}\x01line %d\n\0" % number)
        assert limit.passed() == ""
    clock.now += 121
    assert limit.passed().startswith("after 1121 s, the last 121 s without progress. The limit is provision_")


def test_unchanged_output_does_not_count_as_progress(clock: SimpleNamespace) -> None:
    limit = Limit(120, "provision_timeout=120")
    for _ in range(3):
        limit.look(SAID[:9])
        limit.look(SAID[9:])
        clock.now += 50
    assert "150 s without progress" in limit.passed()


def test_progress_is_limited_too(clock: SimpleNamespace) -> None:
    limit = Limit(120, "provision_timeout=120")
    for number in range(13):
        clock.now += 100
        limit.look(b"{}\x01still waiting %d\n\0" % number)
    assert limit.passed() == (
        "after 1300 s. It makes progress, but in all it may take 10 times the limit without: provision_timeout=120"
    )


def test_a_reboot_has_its_own_limit(clock: SimpleNamespace) -> None:
    limit = Limit(20)
    limit.look(SAID)
    clock.now += 19
    assert limit.passed() == ""
    clock.now += 2
    assert limit.passed().startswith("after 21 s. That is all of its time; give it more (timeout, or boot_timeout)")


def test_the_setting_includes_the_limit_without_kvm() -> None:
    assert provision_limit.setting(120.0, 120.0) == "provision_timeout=120"
    assert provision_limit.setting(120.0, 1200.0) == "provision_timeout=120, 1200 s without KVM"


def test_a_guest_that_floods_does_not_fill_memory() -> None:
    limit = Limit(1)

    def flood() -> None:
        for _ in range(100):
            limit.look(b"x" * 100_000)

    assert allocated(flood) < 32 * 1024


class Connection:
    """Checks the guest's script, and ends with an exit code or never."""

    def __init__(self, said: bytes = b"", code: int | None = 0) -> None:
        self.said, self.code = said, code

    def execute(self, command: str, *, stderr: Callable[[bytes], object], check: Callable[[], None], **_: Any) -> int:
        assert subprocess.run(["sh", "-nc", command], check=False).returncode == 0, "it is not a shell script"
        stderr(self.said)
        while self.code is None:
            check()
        return self.code


def test_the_error_has_the_limit_the_time_and_the_output_of_cloud_init() -> None:
    console = cast("Any", SimpleNamespace(tail=lambda *_: "  | login:"))
    target = Target("web", console, lambda: None)
    limit = Limit(0.3, provision_limit.setting(0.3, 3))
    with pytest.raises(ProvisionTimeout) as caught:
        wait_for_cloud_init(target, cast("Any", Connection(SAID, None)), limit)
    assert re.sub(r"(after|last) \d+ s", r"\1 N s", str(caught.value)) == (
        "web let us log in, but cloud-init (packages, run_commands, user_data) has not finished after N s, the "
        "last N s without progress. The limit is provision_timeout=0.3, 3 s without KVM; give it more if a step "
        "takes long.\nThe last lines of cloud-init's output:\n"
        "  | Unpacking ruby (1:3.3) ...\n  | Unpacking \\x1b[1mpuppet\\x1b[0m (8.4.2) ...\n"
        "The last lines of its console:\n  | login:"
    )
    assert isinstance(caught.value, BootTimeout)


def test_a_look_has_two_parts_and_ends_with_a_zero() -> None:
    once = subprocess.run(["sh", "-c", f"{LOOK}look"], capture_output=True, check=False)
    assert once.stdout == b"\x01\0", "there is no cloud-init here"
    shown = subprocess.run(
        ["sh", "-c", f"{LOOK}for n in $(seq 10); do beats; done"], capture_output=True, check=False
    )
    assert (shown.stdout, shown.stderr) == (b"", b"\x01\0")


def machine(prepare: Callable[[Any], object], provision_timeout: float = 0.1) -> Any:
    spec = SimpleNamespace(prepare=prepare, provision_timeout=provision_timeout)
    return SimpleNamespace(name="web", spec=spec, scaled=lambda seconds: seconds, log=CommandLog())


def test_a_prepare_that_does_not_end_is_abandoned() -> None:
    forever = threading.Event()

    def set_up(vm: Any) -> None:
        with vm.log.entry("apt-get install nginx", "debian") as entry:
            entry.outcome = "exit 100"
        forever.wait(60)

    with SILENT.step("preparing") as step, pytest.raises(ProvisionTimeout) as caught:
        provision_limit.prepare(machine(set_up), step)
    forever.set()
    name = "test_a_prepare_that_does_not_end_is_abandoned.<locals>.set_up"
    assert str(caught.value) == (
        f"web: prepare={name} did not end within 1 s. Its last command: apt-get install nginx (exit 100). "
        "The limit is 10 times provision_timeout=0.1"
    )


def test_an_exception_of_prepare_is_raised() -> None:
    def set_up(_vm: Any) -> None:
        raise FileNotFoundError("app.tar")

    with SILENT.step("preparing") as step, pytest.raises(FileNotFoundError, match=r"app\.tar"):
        provision_limit.prepare(machine(set_up), step)


@pytest.mark.parametrize(
    ("wait", "said"),
    [
        (
            lambda vm: vm.machine.wait_until_ready(),
            "after 1201 s, the last 1201 s without progress. The limit is provision_timeout=120, 1200 s without KVM;",
        ),
        (
            lambda vm: vm.start(timeout=0.1),
            "after 1201 s. That is all of its time; give it more (timeout, or boot_ti",
        ),
    ],
    ids=["first boot", "later boot"],
)
def test_only_at_the_first_boot_provisioning_has_its_own_limit(
    monkeypatch: pytest.MonkeyPatch, clock: SimpleNamespace, wait: Callable[[VM], None], said: str
) -> None:
    container = SimpleNamespace(
        stdout=FakeOutput(b""),
        stderr=FakeOutput(b""),
        environment={},
        wait=lambda _seconds: False,
        run=lambda _command: (0, b'{"return": {}}'),
    )
    vm = fake_container.machine(container)

    class Waits(Connection):
        def execute(self, *words: Any, check: Callable[[], None], **named: Any) -> int:
            clock.now += 1201
            return super().execute(*words, check=check, **named)

    monkeypatch.setattr(readiness, "wait_for_login", lambda *_: Waits(b"", None))
    with pytest.raises(ProvisionTimeout, match=re.escape(f"has not finished {said}")):
        wait(vm)
