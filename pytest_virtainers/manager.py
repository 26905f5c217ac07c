"""Launch VMs for one run, and end all that the run has started."""

from __future__ import annotations

import contextlib
import secrets
from typing import TYPE_CHECKING

from pytest_virtainers import images, runtime, seed
from pytest_virtainers.endpoint import Endpoint
from pytest_virtainers.engine.container import Container, Link, Plan
from pytest_virtainers.engine.detect import find
from pytest_virtainers.engine.network import Network
from pytest_virtainers.engine.owner import LABEL
from pytest_virtainers.engine.sweep import sweep
from pytest_virtainers.errors import EngineError, SpecError
from pytest_virtainers.keys import Keys
from pytest_virtainers.store import workshop
from pytest_virtainers.vm import VM

if TYPE_CHECKING:
    from types import TracebackType

    from pytest_virtainers.engine.client import Engine
    from pytest_virtainers.images import Guest
    from pytest_virtainers.progress import Progress
    from pytest_virtainers.settings import Settings
    from pytest_virtainers.spec import Spec

# What the supervisor needs: the tap device and its addresses, and a DHCP and DNS server that drops its rights.
_CAPABILITIES = ("NET_ADMIN", "NET_BIND_SERVICE", "NET_RAW", "SETGID", "SETUID")
_KVM = "/dev/kvm"
_OVERHEAD_MIB = 512


class Manager:
    """All VMs of one run on one engine.

    Args:
        settings: of the run.
        progress: where long steps are shown.
        worker: which of several processes of a test run this is, for labels.

    Raises:
        EngineNotFound: no engine answers.
    """

    def __init__(self, settings: Settings, progress: Progress, worker: str = "main") -> None:
        self._settings = settings
        self._progress = progress
        self._worker = worker
        self._run_id = secrets.token_hex(4)
        self._launched = 0
        self._with_kvm = True
        self._vms: list[VM] = []
        self._networks: dict[bool, Network] = {}
        self._guests: dict[str, Guest] = {}
        self._runtime_image: str | None = None
        self._memory_mib: int | None = None
        self.engine: Engine = find(settings.engine)
        try:
            swept = sweep(self.engine)
        except BaseException:
            self.engine.close()
            raise
        if swept:
            progress.note(f"removed what an earlier run left behind: {', '.join(swept)}")

    def __enter__(self) -> Manager:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def runtime_image(self) -> str:
        """Give the runtime image's reference, built if need be; raises `ImageError`."""
        if self._runtime_image is None:
            self._runtime_image = runtime.ensure(self.engine, self._progress)
        return self._runtime_image

    def guest(self, image: str) -> Guest:
        """Give the guest image, brought into the store if need be; raises `ImageError` or `StoreError`."""
        if image not in self._guests:
            images.find(image)  # a wrong name should not have to wait for a container
            with workshop(self.engine, self._settings.store, self.runtime_image(), self._run_id) as shop:
                self._guests[image] = images.ensure(image, shop, self._progress)
        return self._guests[image]

    def launch(self, spec: Spec, node_id: str = "") -> VM:
        """Start a VM and wait until it is ready; when that fails nothing of it remains.

        Args:
            spec: what it should be.
            node_id: of the test that asked, for labels.

        Raises:
            VirtainerError: one of its children says what went wrong.
        """
        __tracebackhide__ = True
        self._check_memory(spec)
        guest = self.guest(spec.image)
        user, keys = spec.user or guest.user, Keys.generate()
        self._launched += 1
        name = f"virtainers-{self._run_id}-{self._launched}-{spec.name}"
        container = self._start(spec, guest, name, seed.iso(spec, keys, user, name), node_id)
        with contextlib.ExitStack() as undo:
            undo.callback(container.close)
            endpoint = Endpoint(self.engine, container)
            vm = VM(spec, user=user, keys=keys, container=container, endpoint=endpoint, progress=self._progress)
            undo.callback(vm.close)
            vm.wait_until_ready()
            undo.pop_all()
        self._vms.append(vm)
        return vm

    def discard(self, vm: VM) -> None:
        """End one VM now."""
        if vm in self._vms:
            self._vms.remove(vm)
            vm.close()

    def close(self) -> None:
        """End all VMs, remove the networks and leave the engine."""
        with contextlib.ExitStack() as stack:  # one failure must not keep the rest from being removed
            stack.callback(self.engine.close)
            for network in self._networks.values():
                stack.callback(network.close)
            for vm in self._vms:
                stack.callback(vm.close)
            self._vms, self._networks = [], {}

    def _start(self, spec: Spec, guest: Guest, name: str, seed_iso: bytes, node_id: str) -> Container:
        while True:
            container = Container(self.engine, self._plan(spec, name, node_id), self._run_id)
            try:
                container.put("/", {"image": Link(guest.disk)})
                container.put("/tmp", {"cloud_init.iso": seed_iso})  # noqa: S108  (the image's contract)
                container.start()
            except EngineError as error:
                container.close()
                # Only the engine knows whether its host has the device; without it, emulation is the answer.
                if self._with_kvm and spec.accel == "auto" and _KVM in str(error):
                    self._with_kvm = False
                    continue
                raise
            except BaseException:
                container.close()
                raise
            return container

    def _plan(self, spec: Spec, name: str, node_id: str) -> Plan:
        wants_kvm = spec.accel == "kvm" or (spec.accel == "auto" and self._with_kvm)
        return Plan(
            name=name,
            kind="vm",
            image=self.runtime_image(),
            environment={
                "RAM": str(spec.ram),
                "CPU": str(spec.cpus),
                "DISK_SIZE": f"{spec.disk}M",
                "VM_NAME": spec.guest_hostname,
                "ACCEL": spec.accel,
                "LEASE": "stdin",
                "DISK_CACHE": "unsafe",  # the disk goes with the VM: nothing is gained by waiting for the platter
            },
            store=self._settings.store,
            network=self._network(internet=spec.internet).name,
            aliases=(spec.guest_hostname,),
            hostname=spec.guest_hostname,
            devices=("/dev/net/tun", *([_KVM] if wants_kvm else [])),
            capabilities=_CAPABILITIES,
            sysctls={"net.ipv4.ip_forward": "1"},
            memory_mib=spec.ram + _OVERHEAD_MIB,
            labels={
                f"{LABEL}.worker": self._worker,
                f"{LABEL}.test": node_id,
                f"{LABEL}.vm": spec.name,
                f"{LABEL}.image": spec.image,
            },
        )

    def _network(self, *, internet: bool) -> Network:
        if internet not in self._networks:
            name = f"virtainers-{self._run_id}-{'nat' if internet else 'internal'}"
            self._networks[internet] = Network(self.engine, name, self._run_id, internet=internet)
        return self._networks[internet]

    def _check_memory(self, spec: Spec) -> None:
        if self._memory_mib is None:
            with self.engine.failures("asking for the memory of the engine's host"):
                self._memory_mib = self.engine.memory_mib()
        if spec.ram > self._memory_mib:
            raise SpecError(f"{spec.name}: ram={spec.ram}M is more than the engine's host has ({self._memory_mib}M)")
