"""VMs whose launch fails, and VMs that their tests no longer use: how long they are kept."""

from pathlib import Path

import pytest

from pytest_virtainers.config.spec import Spec
from pytest_virtainers.errors import BootTimeout, EngineError, GuestStalled
from pytest_virtainers.launching.templates import Maker, Template
from pytest_virtainers.ssh.keys import Keys
from tests.unit.launching.world import BOOT, CLONE, TEMPLATE, World, number
from tests.unit.memory_engine import MemoryEngine


@pytest.fixture
def discarding(engine: MemoryEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Return a launcher that keeps no failed VMs."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return World(engine, keep_failed=False)


@pytest.mark.parametrize("fate", [BootTimeout("slow"), KeyError("prepare"), pytest.fail.Exception("Timeout >1s")])
def test_a_vm_whose_launch_fails_is_kept_until_its_evidence_is_taken(fate: BaseException, world: World) -> None:
    world.fates = [fate]
    with pytest.raises(type(fate)):
        world.launch(BOOT)
    assert len(world.failed.vms) == 1
    assert world.events == ["start 1"]
    world.failed.close()
    assert (world.events, world.failed.vms) == (["start 1", "end 1"], [])


def make_templates(world: World) -> None:
    """Make the template of each clone first, in a scratch folder that always has the same name."""

    def make(spec: Spec, maker: Maker) -> Template:
        maker.boot(spec, Keys.generate(), "/store/.scratch-1")
        return TEMPLATE

    world.templates.make = make


@pytest.mark.parametrize("fate", [BootTimeout("slow"), KeyError("prepare"), KeyboardInterrupt()])
def test_a_failed_template_vm_ends_before_its_folder_is_removed(fate: BaseException, world: World) -> None:
    make_templates(world)
    world.fates = [fate]
    with pytest.raises(type(fate)):
        world.launch(CLONE)
    assert [each.machine.folder for each in world.failed.vms] == ["/store/.scratch-1"]
    assert world.events == ["start 1"]
    world.failed.close(released=False)
    assert world.events == ["start 1", "end 1", 'rm -rf "$@" /store/.scratch-1']
    world.failed.close()
    assert len(world.events) == 3, "once"


def test_an_unfinished_folder_is_removed_even_if_its_vm_cannot_be_closed(world: World) -> None:
    make_templates(world)
    world.fates, world.refuses_to_go = [BootTimeout("slow")], True
    with pytest.raises(BootTimeout):
        world.launch(CLONE)
    with pytest.raises(EngineError, match="it does not go"):
        world.launcher.close()
    assert world.events == ["start 1", "end 1", 'rm -rf "$@" /store/.scratch-1']


def test_without_evidence_the_builder_removes_the_unfinished_folder(discarding: World) -> None:
    make_templates(discarding)
    discarding.fates = [BootTimeout("slow")]
    with pytest.raises(BootTimeout):
        discarding.launch(CLONE)
    discarding.launcher.close()
    assert discarding.events == ["start 1", "end 1"]


def test_without_evidence_a_failed_vm_ends_at_once(discarding: World) -> None:
    discarding.fates = [BootTimeout("slow")]
    with pytest.raises(BootTimeout):
        discarding.launch(BOOT)
    assert (discarding.events, discarding.failed.vms) == (["start 1", "end 1"], [])
    discarding.launcher.close()


@pytest.mark.parametrize(("spec", "fate"), [(CLONE, BootTimeout("slow")), (BOOT, GuestStalled("it hangs"))])
def test_a_failed_vm_is_closed_before_the_next_try(spec: Spec, fate: BaseException, world: World) -> None:
    world.fates = [fate, None]
    assert number(world.launch(spec)) == 2
    assert world.events == ["start 1", "end 1", "start 2"]
    assert world.failed.vms == []


def test_an_unreturned_vm_ends_with_the_run(world: World) -> None:
    world.fates = [BootTimeout("slow"), None]
    with pytest.raises(BootTimeout):
        world.launch(BOOT)
    world.refuses_to_go = True
    with pytest.raises(EngineError, match="it does not go"):
        world.launch(BOOT)
    world.refuses_to_go = False
    world.launcher.close()
    assert world.events == ["start 1", "start 2", "end 1", "end 2"]


def test_all_released_vms_end_even_if_one_cannot_be_closed(world: World) -> None:
    for vm in [world.launch(BOOT), world.launch(BOOT)]:
        world.launcher.release(vm)
        world.launcher.release(vm)
    world.failed.close(released=False)
    assert not any(each.startswith("end") for each in world.events)
    world.refuses_to_go = True
    with pytest.raises(EngineError):
        world.failed.close()
    assert sorted(each for each in world.events if each.startswith("end")) == ["end 1", "end 2"]
    world.refuses_to_go = False
