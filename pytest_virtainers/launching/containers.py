"""Start the containers of VMs when there is memory for them."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from pytest_virtainers.errors import EngineError
from pytest_virtainers.launching import memory_budget
from pytest_virtainers.launching.container_plan import BOOT
from pytest_virtainers.support.runtime_modules import protocol
from pytest_virtainers.support.timings import phase

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pytest_virtainers.config.spec import Spec
    from pytest_virtainers.engine.base import Container, Engine
    from pytest_virtainers.engine.plan import Plan
    from pytest_virtainers.engine.tar import Link
    from pytest_virtainers.launching.container_plan import Planner, Start
    from pytest_virtainers.launching.networks import Networks
    from pytest_virtainers.store.access import Access

_KVM = "/dev/kvm"
# Tests of other processes close their VMs at some time; after this long, the user should know.
_WAIT_SECONDS = 900.0


class Containers:
    """Starts the containers of one run's VMs.

    Args:
        engine: the engine that runs them.
        planner: makes the plans.
        run_id: id of the run.
        networks: networks of the run.
        access: what containers mount of the store.
        memory: the memory that VMs may take.
        give_back: frees memory that this process does not need, and returns whether there was any.
    """

    def __init__(
        self,
        engine: Engine,
        planner: Planner,
        run_id: str,
        *,
        networks: Networks,
        access: Access,
        memory: memory_budget.Budget,
        give_back: Callable[[], bool],
    ) -> None:
        self._engine, self.planner, self._run_id = engine, planner, run_id
        self._networks, self._access = networks, access
        self._memory, self._give_back = memory, give_back
        self._numbers = itertools.count(1)
        self._with_kvm = True

    def start(
        self,
        spec: Spec,
        places: Sequence[str],
        environment: Mapping[str, str],
        node_id: str,
        *,
        start: Start = BOOT,
        files: Mapping[str, Mapping[str, bytes | Link]] | None = None,
        mounted: Callable[[], Iterator[bytes]] | None = None,
        ahead: bool = False,
    ) -> Container:
        """Create the VM's network if it is missing, and start a container on it once there is memory.

        Args:
            spec: spec of the VM.
            places: places in the store that it reads, and nothing else of it; its disk is based on the first.
            environment: variables of the container, over those from `spec`.
            node_id: id of the test, for labels.
            start: how the VM starts.
            files: files to put into it before it starts, by folder and name.
            mounted: returns the content of `/mounted` as a tar stream, from its beginning each time.
            ahead: whether no test waits for it: it is then started now or not at all.

        Raises:
            EngineError: the engine failed.
            BudgetError: there is no memory for it.
            Removed: one of the places is no longer in the store.
        """
        mounting = self._access.mounting(places)
        name = f"virtainers-{self._run_id}-{next(self._numbers)}-{spec.name}"
        setting = self._networks.setting(spec.first_network)
        while True:
            plan = self.planner.plan(
                spec, name, places, environment, node_id, start=start, setting=setting, with_kvm=self._with_kvm
            )
            room = self._memory.room(
                spec,
                int(plan.labels[memory_budget.MEMORY]),
                patience=0 if ahead else _WAIT_SECONDS,
                give_back=(lambda: False) if ahead else self._give_back,
            )
            try:
                with phase("room, create container"), room:
                    container = self._engine.create(plan, self._run_id)
            except EngineError as error:
                # Podman looks for devices here.
                if self._goes_without_kvm(plan, spec, error) or mounting.should_retry(plan.binds, error):
                    continue
                raise
            try:
                with phase("start container"):
                    for folder, members in (files or {}).items():
                        container.put(folder, members)
                    if mounted is not None:
                        container.put_archive(protocol.IMAGE_DIR, mounted())
                    container.start()
                    self._networks.guard(container, spec.first_network)
            except EngineError as error:
                container.close()
                # Docker looks for devices here.
                if self._goes_without_kvm(plan, spec, error) or mounting.should_retry(plan.binds, error):
                    continue
                raise
            except BaseException:
                container.close()
                raise
            return container

    def _goes_without_kvm(self, plan: Plan, spec: Spec, error: EngineError) -> bool:
        """Return whether the next try should be without KVM: only the engine knows whether its host has the device.

        `plan` decides: a VM that starts at the same time may have found out already.
        """
        if not (_KVM in plan.devices and spec.accel == "auto" and _KVM in str(error)):
            return False
        self._with_kvm = False
        return True
