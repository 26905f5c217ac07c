"""What the container of a VM should be: devices, mounts, networks, variables, labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_virtainers.engine.ownership import DETACHED, LABEL, NAME
from pytest_virtainers.engine.plan import Plan
from pytest_virtainers.launching import memory_budget
from pytest_virtainers.launching.lifetime import DISPOSABLE, Lifetime, seconds_to_stop
from pytest_virtainers.store.entries import STORE, USES
from pytest_virtainers.support.runtime_modules import Variable, protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_virtainers.config.settings import Settings
    from pytest_virtainers.config.spec import Spec
    from pytest_virtainers.launching.networks import NetworkSetting
    from pytest_virtainers.launching.runtime_image import RuntimeImage
    from pytest_virtainers.store.access import Access

# What the supervisor needs: the tap device and its addresses, and a DHCP and DNS server that drops its rights.
_CAPABILITIES = ("NET_ADMIN", "NET_BIND_SERVICE", "NET_RAW", "SETGID", "SETUID")
_KVM = "/dev/kvm"
_OVERHEAD_MIB = 512


@dataclass(frozen=True)
class Start:
    """How a VM starts: it boots, or is restored from a template; either way it may be saved as a template.

    Attributes:
        template: path of the template's folder from which it is restored; empty: it boots.
        save_into: path of the folder of the store into which it can be saved; empty: it stays a VM.
    """

    template: str = ""
    save_into: str = ""

    @property
    def is_clone(self) -> bool:
        """Whether it shares the RAM of a template; a VM that is to be saved has a copy."""
        return bool(self.template) and not self.save_into

    @property
    def variables(self) -> dict[str, str]:
        """The container's variables."""
        restored = {Variable.TEMPLATE: self.template} if self.template else {}
        saved = {Variable.TEMPLATE_SAVE: "on", Variable.IMAGE_DIR: self.save_into} if self.save_into else {}
        return restored | saved


BOOT = Start()


class Planner:
    """Plans the containers of one run's VMs.

    Args:
        settings: settings of the run.
        worker: name of this process among those of a test run, for labels.
        lifetime: how long the VMs stay.
        runtime_image: image of the containers.
        access: what containers mount of the store.
    """

    def __init__(
        self,
        settings: Settings,
        worker: str,
        lifetime: Lifetime,
        *,
        runtime_image: RuntimeImage,
        access: Access,
    ) -> None:
        self._settings, self._worker, self._lifetime = settings, worker, lifetime
        self._runtime_image, self._access = runtime_image, access

    def plan(
        self,
        spec: Spec,
        name: str,
        places: Sequence[str],
        environment: Mapping[str, str],
        node_id: str,
        *,
        start: Start = BOOT,
        setting: NetworkSetting,
        with_kvm: bool = True,
    ) -> Plan:
        """Return the plan of a container.

        Args:
            spec: spec of the VM.
            name: name of the container.
            places: places in the store that it reads; its disk is based on the first.
            environment: variables of the container, over those from `spec`.
            node_id: id of the test, for labels.
            start: how the VM starts.
            setting: what it needs to be on the VM's first network.
            with_kvm: whether it gets the host's KVM if `spec` leaves that open.
        """
        wants_kvm = spec.accel == "kvm" or (spec.accel == "auto" and with_kvm)
        lifetime = DISPOSABLE if start.save_into else self._lifetime
        variables = {
            Variable.RAM: str(spec.ram),
            Variable.CPU: str(spec.cpus),
            Variable.DISK_SIZE: f"{spec.disk}M",
            Variable.VM_NAME: spec.guest_hostname,
            Variable.ACCEL: spec.accel,
            Variable.EVENTS: protocol.JSON,
            # A VM that switches itself off stays for its evidence, and may be switched on again.
            **({} if lifetime.detached else {Variable.LEASE: "stdin", Variable.LINGER: "on"}),
            # A disk that is removed with the VM need not be flushed.
            **({Variable.DISK_CACHE: "unsafe"} if lifetime == DISPOSABLE else {}),
            **spec.env,
            **setting.environment,
            **start.variables,
            **environment,
        }
        return Plan(
            name=name,
            kind=DETACHED if lifetime.detached else "vm",
            image=self._runtime_image.reference(),
            environment=variables,
            stop_seconds=seconds_to_stop(variables),
            binds=self._access.binds(places, scratch=start.save_into or None, lasting=lifetime.detached),
            # The engine removes a killed container with all that is in it, but not a volume.
            volume=f"{name}-disk" if self._keeps_disks and not start.save_into else None,
            folder=lifetime.folder,
            port=setting.network.port(spec.guest_hostname, spec.ip, first=True),
            devices=("/dev/net/tun", *([_KVM] if wants_kvm else [])),
            # A folder of the host may belong to any user; QEMU does not run as root and gains nothing by this.
            capabilities=(*_CAPABILITIES, *(["DAC_OVERRIDE"] if lifetime.folder else [])),
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
                    memory_budget.cloned_mib(spec) if start.is_clone else memory_budget.booted_mib(spec)
                ),
                memory_budget.LIMIT: str(memory_budget.booted_mib(spec)),
            },
            lease=not lifetime.detached,
            auto_remove=not lifetime.detached or lifetime.auto_remove,
        )

    @property
    def _keeps_disks(self) -> bool:
        return self._settings.keep != "never" and self._lifetime == DISPOSABLE
