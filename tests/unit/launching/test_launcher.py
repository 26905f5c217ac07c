"""What becomes of a template whose clones do not get ready; here they only succeed or fail."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pytest_virtainers.config.settings import resolve
from pytest_virtainers.config.spec import Spec, check, merge
from pytest_virtainers.engine import runtime_image, scratch
from pytest_virtainers.engine.plan import Port
from pytest_virtainers.errors import (
    BadTemplate,
    BootTimeout,
    EngineError,
    GuestStalled,
    ImageError,
    SpecError,
    SSHError,
    StoreError,
    VirtainerError,
    VMGone,
)
from pytest_virtainers.guests import images
from pytest_virtainers.guests.images import Guest
from pytest_virtainers.launching import launcher as module
from pytest_virtainers.launching.integrity import Checked
from pytest_virtainers.launching.launcher import Manager
from pytest_virtainers.launching.networks import Setting
from pytest_virtainers.launching.templates import Template
from pytest_virtainers.ssh.keys import KeyPair, Keys
from pytest_virtainers.store.access import Removed
from pytest_virtainers.support.progress import Progress
from pytest_virtainers.vm.vm import VM
from tests.unit.memory_engine import MemoryContainer, MemoryEngine

SPEC, GUEST = merge(resolve([]).shape), Guest("debian-13-abc", "debian", "digest")
READY = cast("VM", SimpleNamespace(spec=SPEC))
ONCE_MORE = "virtainers: a clone of debian-13 did not get ready, once more: {}\n"
MADE_ANEW = "virtainers: a template of debian-13 does not restore and is made anew: {}\n"


class Templates:
    """Gives another one each time, and notes whether the last one was condemned."""

    def __init__(self) -> None:
        self.given: list[Template] = []
        self.condemned: list[bool] = []
        self.others_made_it_anew = False

    def ensure(self, _spec: Spec, _guest: Guest, _boot: object) -> Template:
        pair = KeyPair(f"key {len(self.given)}", "")
        self.given.append(Template("abc", "guests/debian-13-abc", "debian", Keys(pair, pair)))
        return self.given[-1]

    def made_from(self, _place: str) -> list[Template]:
        return []

    def forget(self, template: Template, *, condemned: bool) -> bool:
        assert template is self.given[-1]
        self.condemned.append(condemned)
        return condemned and not self.others_made_it_anew


class Run:
    """A manager without an engine."""

    def __init__(self) -> None:
        self.templates, self.notes = Templates(), list[str]()
        self.manager = Manager(resolve([]), Progress(self.notes.append, live=False))
        self.manager._templates = cast("Any", self.templates)

    def clone(self, *failures: VirtainerError) -> VM:
        """Clone; the first tries fail so."""
        coming = list(failures)

        def start_clone(_spec: Spec, _guest: Guest, template: Template, _node_id: str) -> VM:
            assert template is self.templates.given[-1]
            if coming:
                raise coming.pop(0)
            return READY

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.manager, "_start_clone", start_clone)
            return self.manager._clone(SPEC, GUEST, "test_x")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(module, "find", lambda _engine: MemoryEngine())
    monkeypatch.setattr(Manager, "_is_kept_on", lambda *_: False)
    monkeypatch.setattr(Manager, "_is_stored", lambda *_: True)
    monkeypatch.setattr(scratch, "sweep", lambda: None)
    monkeypatch.setattr(module, "Reaper", lambda *_: None)
    return Run()


def test_an_image_that_cannot_be_had_is_not_tried_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def ensure(image: str, *_: object) -> Guest:
        tried.append(image)
        raise ImageError(f"no {image}")

    monkeypatch.setattr(run.manager, "store", nullcontext)
    monkeypatch.setattr(images, "ensure", ensure)
    for image in ("fedora", "fedora", "arch"):
        with pytest.raises(ImageError, match=f"^no {image}$"):
            run.manager.guest(image)
    assert tried == ["fedora", "arch"]


def test_a_template_that_was_removed_before_a_clone_could_start_is_made_anew(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    places: list[Sequence[str]] = []

    def start(_spec: Spec, needed: Sequence[str], *_: object, **_named: object) -> None:
        places.append(needed)
        raise Removed("templates/abc is not in the store any more: it was removed just now")

    monkeypatch.setattr(run.manager.starter, "start", start)
    template = run.templates.ensure(SPEC, GUEST, None)
    with pytest.raises(
        BadTemplate, match=r"^vm: templates/abc is not in the store any more: it was removed just now$"
    ):
        run.manager._start_clone(SPEC, replace(GUEST, key="the same disk by another name"), template, "a-test")
    assert places == [("templates/abc", "guests/debian-13-abc")], "what it was made on, not what is asked for"


def test_a_template_that_says_it_is_bad_is_made_anew_at_once(run: Run) -> None:
    assert run.clone(BadTemplate("vm has ended: another QEMU.\nIts console:")) is READY
    assert run.templates.condemned == [True]
    assert run.notes == [MADE_ANEW.format("vm has ended: another QEMU.")]


@pytest.mark.parametrize("failure", [BootTimeout("too slow"), SSHError("vm shows another SSH host key")])
def test_a_clone_that_fails_once_is_tried_again_with_the_template_that_is_in_the_store_now(
    run: Run, failure: VirtainerError
) -> None:
    assert run.clone(failure) is READY
    assert run.templates.condemned == [False]
    assert len(run.templates.given) == 2
    assert run.notes == [ONCE_MORE.format(failure)]


def test_a_template_on_which_a_kept_vm_has_its_disk_stays(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Manager, "_is_kept_on", lambda *_: True)
    booted: Any = object()
    monkeypatch.setattr(Manager, "_boot", lambda *_: booted)
    assert run.clone(BadTemplate("another QEMU")) is booted
    assert run.templates.condemned == []
    assert "a VM that stays has its disk on it: vm is booted instead: another QEMU" in run.notes[0]


def test_two_that_fail_condemn_their_template(run: Run) -> None:
    assert run.clone(BootTimeout("too slow"), SSHError("broken")) is READY
    assert run.templates.condemned == [False, True]
    assert run.notes == [ONCE_MORE.format("too slow"), MADE_ANEW.format("broken")]


def test_a_template_that_others_have_made_anew_meanwhile_is_not_said_to_be_bad(run: Run) -> None:
    run.templates.others_made_it_anew = True
    assert run.clone(BadTemplate("damaged")) is READY
    assert run.notes == [ONCE_MORE.format("damaged")]


def test_three_that_fail_are_told(run: Run) -> None:
    with pytest.raises(SSHError, match="third"):
        run.clone(BootTimeout("first"), BadTemplate("second"), SSHError("third"), SSHError("fourth"))
    assert run.templates.condemned == [False, True]


def test_what_no_template_can_be_blamed_for_is_told_at_once(run: Run) -> None:
    with pytest.raises(StoreError, match="no space left"):
        run.clone(StoreError("no space left"))
    assert run.templates.condemned == []
    assert run.notes == []


class Watch:
    """Finds this, once."""

    def __init__(self, *found: Checked) -> None:
        self.found = [*found]

    def damage(self) -> list[Checked]:
        found, self.found = self.found, []
        return found


TEMPLATE = Template("abc", "guests/g", "debian", Keys(KeyPair("", ""), KeyPair("", "")))
SPOILED = Checked("templates/abc", "ram", "bb", "aa")


@pytest.mark.parametrize("is_kept_on", [False, True])
def test_a_template_that_turns_out_to_be_damaged_fails_the_next_launch_and_no_other(
    run: Run, monkeypatch: pytest.MonkeyPatch, is_kept_on: bool
) -> None:
    monkeypatch.setattr(Manager, "_is_kept_on", lambda *_: is_kept_on)
    booted: Any = SimpleNamespace(spec=SPEC)
    monkeypatch.setattr(Manager, "_boot", lambda *_: booted)
    run.manager._watch = cast("Any", Watch(SPOILED))
    run.manager._guests["debian-13", "auto"] = GUEST
    run.templates.given.append(TEMPLATE)
    run.templates.known = lambda place: TEMPLATE if place == "templates/abc" else None  # type: ignore[attr-defined]
    with pytest.raises(StoreError) as caught:
        run.manager.launch(SPEC)
    said = str(caught.value)
    assert said.startswith(
        "templates/abc: ram is damaged: its SHA-256 is bb, and was aa. VMs of this run were started"
    )
    assert run.manager.damage == [said]
    assert run.templates.condemned == ([] if is_kept_on else [True])
    assert run.clone() is (booted if is_kept_on else READY)
    assert run.manager.damage == [said]
    assert said.endswith("others are booted" if is_kept_on else "It was removed and will be made again")


@pytest.mark.parametrize("is_kept_on", [False, True])
def test_what_was_copied_from_a_damaged_template_goes_with_it(
    run: Run, monkeypatch: pytest.MonkeyPatch, is_kept_on: bool
) -> None:
    layer = replace(TEMPLATE, key="layer", origin=TEMPLATE.place)
    monkeypatch.setattr(Manager, "_is_kept_on", lambda _manager, template: template is layer and is_kept_on)
    gone: list[Template] = []
    run.templates.known = lambda _place: TEMPLATE  # type: ignore[attr-defined]
    monkeypatch.setattr(run.templates, "made_from", lambda place: [layer] * (place == TEMPLATE.place))
    monkeypatch.setattr(run.templates, "forget", lambda template, **_: gone.append(template))
    run.manager._watch = cast("Any", Watch(SPOILED))
    run.manager.look_for_damage()
    assert gone == ([TEMPLATE] if is_kept_on else [layer, TEMPLATE])
    assert (layer.place in run.manager._spoiled) is is_kept_on


def test_a_guest_image_that_turns_out_to_be_damaged_is_refused_from_then_on(run: Run) -> None:
    run.manager._guests["debian-13", "auto"] = GUEST
    run.manager._watch = cast("Any", Watch(Checked(GUEST.place, "disk.qcow2", "bb", "aa")))
    remedy = r"disk\.qcow2 is damaged: .*To have it made or fetched again: virtainers store verify --remove$"
    with pytest.raises(StoreError, match=remedy):
        run.manager.launch(SPEC)
    for _ in range(2):
        with pytest.raises(ImageError, match=remedy):
            run.manager.guest_of(SPEC)


def test_damage_that_is_found_last_is_noted_at_the_end(run: Run) -> None:
    run.manager._watch = cast("Any", Watch(SPOILED))
    run.templates.known = lambda _place: None  # type: ignore[attr-defined]
    run.manager._note_damage()
    assert run.notes == [f"virtainers: {run.manager.damage[0]}\n"]


class WithoutKVM(MemoryContainer):
    """A container on a host without `/dev/kvm`."""

    def start(self) -> None:
        if "/dev/kvm" in self.plan.devices:
            raise EngineError("no such file or directory: /dev/kvm")


def test_what_no_machine_could_run_is_told_before_its_image_is_built(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run.manager, "guest", lambda image, arch: (image, arch))
    run.manager.engine = MemoryEngine(arch="amd64")
    refused: tuple[tuple[dict[str, Any], str], ...] = (
        (
            {"image": "debian-13-arm64", "firmware": "bios"},
            r"vm \(debian-13-arm64\): arm64 machines boot from uefi, not from bios",
        ),
        (
            {"arch": "arm64", "accel": "kvm"},
            "vm: accel='kvm' runs guests of the host's own architecture, amd64; debian-13 is for arm64, and emulated",
        ),
    )
    for wanted, told in refused:
        with pytest.raises(SpecError, match=told):
            run.manager.guest_of(replace(SPEC, **wanted))
    for spec in (
        SPEC,
        replace(SPEC, accel="kvm"),
        replace(SPEC, arch="arm64"),
        replace(SPEC, image="docker-image://x"),
    ):
        given: object = run.manager.guest_of(spec)
        assert given == (spec.image, spec.arch)


@pytest.fixture
def without_kvm(run: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    run.manager.engine = run.manager.starter._engine = MemoryEngine(factory=WithoutKVM)
    monkeypatch.setattr(run.manager.starter, "_memory", SimpleNamespace(room=lambda *_, **_named: nullcontext()))
    setting = Setting({}, {}, ())
    network = SimpleNamespace(port=lambda *_, **_named: Port("n"), join=lambda *_: None)
    networks = SimpleNamespace(get=lambda _: network, setting=lambda _: setting, guard=lambda *_: None)
    monkeypatch.setattr(run.manager, "networks", networks)
    monkeypatch.setattr(run.manager.starter, "_networks", networks)
    monkeypatch.setattr(run.manager._access, "_root", "/volumes/store")
    run.manager._runtime_image = "an-image"
    return run


def created(run: Run) -> list[MemoryContainer]:
    assert isinstance(run.manager.engine, MemoryEngine)
    return run.manager.engine.created


def test_machines_that_start_together_each_go_without_kvm(without_kvm: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """All have been refused before the first of them has drawn its conclusion."""
    refused, start = threading.Barrier(3), WithoutKVM.start

    def start_together(container: WithoutKVM) -> None:
        try:
            start(container)
        except EngineError:
            refused.wait(10)
            raise

    monkeypatch.setattr(WithoutKVM, "start", start_together)
    with ThreadPoolExecutor(3) as pool:
        started = [
            pool.submit(without_kvm.manager.starter.start, SPEC, [GUEST.place], {}, "a-test") for _ in range(3)
        ]
        assert all("/dev/kvm" not in each.result().plan.devices for each in started)  # type: ignore[attr-defined]
    assert ["/dev/kvm" in each.plan.devices for each in created(without_kvm)] == [True] * 3 + [False] * 3


def test_a_kept_disk_is_whole_also_where_there_is_no_kvm(without_kvm: Run) -> None:
    run = without_kvm
    pair = KeyPair("", "")
    run.manager.start_kept(
        SPEC,
        guest=GUEST,
        user="debian",
        keys=Keys(pair, pair),
        environment={},
        disk=lambda: iter([b"a whole ", b"disk"]),
        seed_iso=b"",
    )
    assert ["/dev/kvm" in each.plan.devices for each in created(run)] == [True, False]
    assert created(run)[-1].unpacked == {"/mounted": b"a whole disk"}


@pytest.mark.parametrize(
    ("arguments", "is_made_ready"),
    [
        ({}, True),
        ({"ip": "172.30.0.9", "network": {"name": "n", "mode": "routed", "subnet": "172.30.0.0/24"}}, False),
        ({"network": {"name": "n", "mode": "existing", "source": "theirs"}}, False),
    ],
)
def test_what_is_somebody_elses_is_not_taken_ahead(
    run: Run, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], is_made_ready: bool
) -> None:
    wanted: list[Spec | None] = []
    monkeypatch.setattr(run.manager._prefetcher, "want", lambda spec, _node_id: wanted.append(spec))
    spec = merge(resolve([]).shape, check(arguments, "a test"))
    run.manager.prefetch(spec, "test_x")
    assert wanted == [spec if is_made_ready else None]


def test_a_runtime_image_that_cannot_be_had_is_not_tried_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[object] = []

    def ensure(*_: object) -> str:
        tried.append(_)
        raise ImageError("no package mirror")

    monkeypatch.setattr(runtime_image, "ensure", ensure)
    for _ in range(2):
        with pytest.raises(ImageError, match=r"^no package mirror$"):
            run.manager.runtime_image()
    assert len(tried) == 1


def test_a_template_whose_kernel_hangs_is_made_once_more_ahead_of_several_vms(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.manager._guests["debian-13", "auto"] = GUEST
    monkeypatch.setattr(run.manager._budget, "check", lambda _spec: None)
    failures: list[VirtainerError] = [GuestStalled("it hangs")]
    made: list[Spec] = []

    def template(spec: Spec, *_: object) -> None:
        if failures:
            raise failures.pop()
        made.append(spec)

    monkeypatch.setattr(run.manager, "_template", template)
    run.manager.warm(SPEC)
    assert made == [SPEC]


@pytest.mark.parametrize("error", [Removed("guests/debian-13-abc is not in the store any more"), VMGone("bad-image")])
def test_a_remembered_guest_image_that_is_gone_is_looked_for_again(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: VirtainerError
) -> None:
    """Another process may have removed it since it was remembered."""
    remade = replace(GUEST, digest="remade")
    coming, booted = [GUEST, remade], list[Guest]()

    def boot(_spec: Spec, guest: Guest, *_: object) -> VM:
        booted.append(guest)
        if guest is GUEST:
            raise error
        return READY

    monkeypatch.setattr(run.manager, "guest_of", lambda _spec: coming.pop(0))
    monkeypatch.setattr(run.manager, "_boot", boot)
    monkeypatch.setattr(Manager, "_is_stored", lambda _self, guest: guest is remade)
    assert run.manager._clone_or_boot(replace(SPEC, template=False), "a-test") is READY
    assert booted == [GUEST, remade]
    assert run.notes == ["virtainers: guest image debian-13 is not in the store any more as it was: looking again\n"]


def test_a_vm_that_ends_though_its_guest_image_is_there_is_not_started_again(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def boot(*_: object) -> VM:
        raise VMGone("it ended")

    monkeypatch.setattr(run.manager, "guest_of", lambda _spec: GUEST)
    monkeypatch.setattr(run.manager, "_boot", boot)
    with pytest.raises(VMGone, match=r"^it ended$"):
        run.manager._clone_or_boot(replace(SPEC, template=False), "a-test")
    assert run.notes == []
