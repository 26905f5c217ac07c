"""Start the containers of VMs: what each is to be, and when there is memory for it."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from pytest_virtainers.engine.ownership import DETACHED, LABEL, NAME
from pytest_virtainers.engine.plan import DISK_FOLDER, Plan
from pytest_virtainers.errors import EngineError
from pytest_virtainers.launching import memory_budget
from pytest_virtainers.launching.lifetime import DISPOSABLE, Tenure, seconds_to_stop
from pytest_virtainers.store.eviction import STORE, USES
from pytest_virtainers.support.timings import phase

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pytest_virtainers.config.settings import Settings
    from pytest_virtainers.config.spec import Spec
    from pytest_virtainers.engine.base import Container, Engine
    from pytest_virtainers.engine.tar import Link
    from pytest_virtainers.launching.networks import Networks
    from pytest_virtainers.store.access import Access

# What the supervisor needs: the tap device and its addresses, and a DHCP and DNS server that drops its rights.
_CAPABILITIES = ("NET_ADMIN", "NET_BIND_SERVICE", "NET_RAW", "SETGID", "SETUID")
_KVM = "/dev/kvm"
_OVERHEAD_MIB = 512
# Tests of other processes end their VMs some time; somebody at the terminal would rather be told than wait on.
_PATIENCE_SECONDS = 900.0


class Starter:
    """Starts the containers of one run's VMs.

    Args:
        engine: that runs them.
        settings: of the run.
        run_id: of the run.
        worker: which of several processes of a test run this is.
        tenure: how long they stay.
        runtime_image: gives the runtime image's reference.
        networks: those of the run.
        access: to the store.
        memory: that they may take.
        give_back: frees memory of this process that nobody needs; tells whether there was some.
    """

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        run_id: str,
        worker: str,
        tenure: Tenure,
        *,
        runtime_image: Callable[[], str],
        networks: Networks,
        access: Access,
        memory: memory_budget.Budget,
        give_back: Callable[[], bool],
    ) -> None:
        self._engine, self._settings, self._run_id = engine, settings, run_id
        self._worker, self._tenure = worker, tenure
        self._runtime_image, self._networks, self._access = runtime_image, networks, access
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
        files: Mapping[str, Mapping[str, bytes | Link]] | None = None,
        mounted: Callable[[], Iterator[bytes]] | None = None,
        ahead: bool = False,
    ) -> Container:
        """Start a container as `plan` says, when there is memory for it: `ahead` of a test, now or not at all.

        Args:
            spec: of the VM.
            places: what it reads in the store, and nothing else of it; it runs from the first.
            environment: of the container, on top of what `spec` gives.
            node_id: of the test that asked, for labels.
            files: what is put into it beforehand, by folder and name.
            mounted: gives what `/mounted` has in it, as a tar stream, from its beginning each time.
            ahead: nobody waits for it.

        Raises:
            EngineError: the engine failed.
            BudgetError: there is no memory for it.
            Removed: one of the places is not in the store any more.
        """
        mounting = self._access.mounting(places)
        name = f"virtainers-{self._run_id}-{next(self._numbers)}-{spec.name}"
        while True:
            plan = self.plan(spec, name, places, environment, node_id)
            room = self._memory.room(
                spec,
                int(plan.labels[memory_budget.MEMORY]),
                patience=0 if ahead else _PATIENCE_SECONDS,
                give_back=(lambda: False) if ahead else self._give_back,
            )
            try:
                with phase("room, create container"), room:
                    container = self._engine.create(plan, self._run_id)
            except EngineError as error:
                if self._goes_without_kvm(plan, spec, error):  # Podman looks for devices here
                    continue
                if mounting.should_retry(plan.binds, error):
                    continue
                raise
            try:
                with phase("start container"):
                    for folder, members in (files or {}).items():
                        container.put(folder, members)
                    if mounted is not None:
                        container.put_archive(DISK_FOLDER, mounted())
                    container.start()
                    self._networks.guard(container, spec.first_network)
            except EngineError as error:
                container.close()
                if self._goes_without_kvm(plan, spec, error):  # Docker does here
                    continue
                if mounting.should_retry(plan.binds, error):
                    continue
                raise
            except BaseException:
                container.close()
                raise
            return container

    def _goes_without_kvm(self, plan: Plan, spec: Spec, error: EngineError) -> bool:
        """Tell whether the next try is to be without KVM: only the engine knows whether its host has the device.

        It is `plan` that is asked: a VM that starts at the same time may have found out meanwhile.
        """
        if not (_KVM in plan.devices and spec.accel == "auto" and _KVM in str(error)):
            return False
        self._with_kvm = False
        return True

    def plan(
        self, spec: Spec, name: str, places: Sequence[str], environment: Mapping[str, str], node_id: str
    ) -> Plan:
        """Return what the container of a VM is to be, that reads these places in the store and runs from the first.

        `environment` goes on top of what `spec` gives.
        """
        setting = self._networks.setting(spec.first_network)
        wants_kvm = spec.accel == "kvm" or (spec.accel == "auto" and self._with_kvm)
        to_template = "TEMPLATE_SAVE" in environment
        tenure = DISPOSABLE if to_template else self._tenure
        variables = {
            "RAM": str(spec.ram),
            "CPU": str(spec.cpus),
            "DISK_SIZE": f"{spec.disk}M",
            "VM_NAME": spec.guest_hostname,
            "ACCEL": spec.accel,
            # What ends by itself stays for its evidence, and may be switched on again.
            **({} if tenure.detached else {"LEASE": "stdin", "LINGER": "on"}),
            # A disk that goes with the VM: nothing is gained by waiting for the platter.
            **({"DISK_CACHE": "unsafe"} if tenure == DISPOSABLE else {}),
            **spec.env,
            **setting.environment,
            **environment,
        }
        return Plan(
            name=name,
            kind=DETACHED if tenure.detached else "vm",
            image=self._runtime_image(),
            environment=variables,
            stop_seconds=seconds_to_stop(variables),
            binds=self._access.binds(
                places, scratch=environment["IMAGE_DIR"] if to_template else None, lasting=tenure.detached
            ),
            # For a killed container, which the engine removes with all that is in it.
            volume=f"{name}-disk" if self._keeps_disks and not to_template else None,
            folder=tenure.folder,
            port=self._networks.get(spec.first_network).port(spec.guest_hostname, spec.ip, first=True),
            devices=("/dev/net/tun", *([_KVM] if wants_kvm else [])),
            # A folder of the host may be anybody's; QEMU, which is no root, gains nothing by that.
            capabilities=(*_CAPABILITIES, *(["DAC_OVERRIDE"] if tenure.folder else [])),
            sysctls={"net.ipv4.ip_forward": "1", **setting.sysctls},
            dns_options=setting.dns_options,
            memory_mib=spec.ram + _OVERHEAD_MIB,
            labels={
                f"{LABEL}.worker": self._worker,
                f"{LABEL}.test": node_id,
                NAME: spec.name,
                f"{LABEL}.image": spec.image,
                USES: places[0],
                STORE: self._settings.store,
                memory_budget.MEMORY: str(
                    memory_budget.cloned_mib(spec)
                    if "TEMPLATE" in environment and not to_template
                    else memory_budget.booted_mib(spec)
                ),
                memory_budget.LIMIT: str(memory_budget.booted_mib(spec)),
            },
            lease=not tenure.detached,
            auto_remove=not tenure.detached or tenure.auto_remove,
        )

    @property
    def _keeps_disks(self) -> bool:
        return self._settings.keep != "never" and self._tenure == DISPOSABLE
