"""Build the launcher of a run from its real parts; the one place that shows how the parts are connected."""

from __future__ import annotations

import contextlib
import secrets
from typing import TYPE_CHECKING

from pytest_virtainers.engine import scratch
from pytest_virtainers.engine.detect import find
from pytest_virtainers.engine.reaper import Reaper
from pytest_virtainers.launching.bring_up import BringUp
from pytest_virtainers.launching.clones import Clones
from pytest_virtainers.launching.container_plan import Planner
from pytest_virtainers.launching.containers import Containers
from pytest_virtainers.launching.damage import Damage
from pytest_virtainers.launching.disks import Disks
from pytest_virtainers.launching.failed import FailedVMs
from pytest_virtainers.launching.guest_images import GuestImages
from pytest_virtainers.launching.integrity import Watch
from pytest_virtainers.launching.launcher import Launcher
from pytest_virtainers.launching.lifetime import DISPOSABLE, Lifetime, is_used_by_detached
from pytest_virtainers.launching.memory_budget import Budget
from pytest_virtainers.launching.networks import Networks
from pytest_virtainers.launching.once import Once
from pytest_virtainers.launching.prefetch import Prefetcher
from pytest_virtainers.launching.run_store import RunStore
from pytest_virtainers.launching.runtime_image import RuntimeImage
from pytest_virtainers.launching.starting_vms import StartingVMs
from pytest_virtainers.launching.templates import Template, Templates
from pytest_virtainers.store.locks import SharedLocks
from pytest_virtainers.support.forks import Owner
from pytest_virtainers.support.timings import Record
from pytest_virtainers.vm.machine import Machine

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from pytest_virtainers.config.settings import Settings
    from pytest_virtainers.support.progress import Progress


def build_launcher(
    settings: Settings,
    progress: Progress,
    *,
    worker: str = "main",
    test_run: str = "",
    keep_failed: bool = False,
    lifetime: Lifetime = DISPOSABLE,
    without_time_limit: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext,
    echo: Callable[[str], object] | None = None,
) -> Launcher:
    """Find the engine, remove what dead runs left on it, and return a launcher of VMs there.

    Args:
        settings: settings of the run.
        progress: where long steps are shown.
        worker: name of this process among those of a test run, for labels.
        test_run: id that these processes share; empty: there is only this one.
        keep_failed: whether VMs whose launch fails are kept until their evidence is taken.
        lifetime: how long the VMs stay.
        without_time_limit: returns a context in which the time limit of a test does not run.
        echo: called with the output of commands as it arrives; `None`: it is not shown.

    Raises:
        EngineNotFound: no engine answers.
    """
    engine = find(settings.engine)
    with contextlib.ExitStack() as closing:
        closing.callback(engine.close)
        scratch.sweep()
        swept = engine.sweep()
        run_id = secrets.token_hex(4)
        closing.callback(Reaper(engine, run_id).close)

        def in_use(template: Template) -> bool:
            return is_used_by_detached(engine, template.place)

        owner = Owner("this launcher", "Use a thread, or pytest_virtainers.launch in the child.")
        once, durations = Once(test_run, without_time_limit), list[Record]()
        runtime_image = RuntimeImage(engine, once, progress)
        store = RunStore(engine, settings, run_id, runtime_image=runtime_image, owner=owner, progress=progress)
        watch = Watch(store.open_read_only)
        closing.callback(watch.close)
        networks = Networks(
            engine,
            run_id,
            recorded=settings.capture != "never",
            reached=settings.reach,
            note=progress.note,
            lasting=lifetime.detached,
        )
        closing.callback(networks.close)
        locks = SharedLocks()
        closing.callback(locks.close)
        guests = GuestImages(store, locks=locks, once=once, progress=progress, engine_arch=engine.arch)
        templates = Templates(store.open, holds=locks, runtime_id=runtime_image.id, progress=progress, once=once)
        failed = FailedVMs(store, keep=keep_failed)
        damage = Damage(watch, guests, templates, in_use)
        memory = Budget(engine, settings.max_ram, run_id, progress)
        planner = Planner(
            settings,
            worker,
            lifetime,
            runtime_image=runtime_image,
            access=store.access,
        )
        prefetcher = Prefetcher()
        containers = Containers(
            engine,
            planner,
            run_id,
            networks=networks,
            access=store.access,
            memory=memory,
            give_back=prefetcher.give_back,
        )
        starting_vms = StartingVMs(Machine, engine, networks, failed, echo=echo, progress=progress)
        # A process that ends before its VMs has no time to check what they were started from.
        verify: Callable[[str, str], object] = damage.check if not lifetime.detached else lambda *_: None
        bring_up = BringUp(containers, starting_vms, networks, verify=verify, progress=progress)
        clones = Clones(
            templates, guests, bring_up, failed, damage, in_use=in_use, durations=durations, progress=progress
        )
        launcher = Launcher(
            engine,
            run_id,
            runtime_image=runtime_image,
            store=store,
            guests=guests,
            templates=templates,
            networks=networks,
            memory=memory,
            containers=containers,
            starting_vms=starting_vms,
            bring_up=bring_up,
            clones=clones,
            prefetcher=prefetcher,
            failed=failed,
            damage=damage,
            disks=Disks(engine, run_id, runtime_image=runtime_image, access=store.access),
            durations=durations,
            owner=owner,
            closing=closing.pop_all(),
            progress=progress,
        )
    if swept:
        progress.note(f"removed what an earlier run left behind: {', '.join(swept)}")
    return launcher
