"""Cold boot to a ready handle, against the same disk started by hand with a plain QEMU command line.

Both use the QEMU of the runtime image and the accelerator that the plugin's VM took, the same seed contents, the same
wait for SSH and cloud-init, in turn.
"""

import os
import socket
import time

from benchmarks.rows import Row
from pytest_virtainers.config.settings import environment, resolve
from pytest_virtainers.config.spec import Spec, merge
from pytest_virtainers.engine.output import Output
from pytest_virtainers.engine.plan import Bind, NetworkPlan, Plan, Port
from pytest_virtainers.launching import cloud_init
from pytest_virtainers.launching.build import build_launcher
from pytest_virtainers.launching.launcher import Launcher
from pytest_virtainers.ssh import client
from pytest_virtainers.ssh.keys import Keys
from pytest_virtainers.store.places import MOUNT
from pytest_virtainers.support.progress import SILENT
from pytest_virtainers.vm import provision_limit, readiness
from pytest_virtainers.vm.console import Console
from pytest_virtainers.vm.supervisor_events import Supervisor

RUN, PAIRS = "benchmark", 3
PLAIN = """
set -e
qemu-img create -q -f qcow2 -b {disk} -F qcow2 /tmp/overlay.qcow2 {size}M
exec qemu-system-x86_64 -machine q35,accel={accel} -cpu max -m {ram} -smp {cpus} -display none -serial stdio \
    -drive file=/tmp/overlay.qcow2,if=virtio -drive file=/tmp/seed.iso,if=virtio,format=raw,readonly=on \
    -netdev user,id=net0,hostfwd=tcp:0.0.0.0:2222-:22 -device virtio-net-pci,netdev=net0,mac=52:54:00:76:69:02
"""


def accelerator(stderr: Output) -> str:
    """Return the accelerator, kvm or tcg, that a supervisor has reported."""
    accel = Supervisor(stderr).accel
    assert accel, bytes(stderr)
    return accel


def plugin(launcher: Launcher, spec: Spec) -> tuple[float, str]:
    """Boot as the fixtures do; return the seconds until the handle was ready, and the accelerator."""
    began = time.perf_counter()
    vm = launcher.launch(spec)
    taken = time.perf_counter() - began
    accel = accelerator(vm.machine.container.stderr)
    launcher.discard(vm)
    return taken, accel


def by_hand(launcher: Launcher, spec: Spec, network: str, store: str, accel: str) -> float:
    """Boot the same disk with the plain line; return the seconds until SSH worked and cloud-init was done."""
    guest, keys = launcher.guests.get(spec.image), Keys.generate()
    script = PLAIN.format(disk=guest.disk, size=spec.disk, ram=spec.ram, cpus=spec.cpus, accel=accel)
    plan = Plan(
        name=f"virtainers-{RUN}",
        kind="helper",
        image=launcher.runtime_image.reference(),
        entrypoint=("sh", "-c", script),
        binds=(Bind(MOUNT, store),),
        port=Port(network),
        devices=("/dev/kvm",) if accel == "kvm" else (),
    )
    began = time.perf_counter()
    container = launcher.engine.create(plan, RUN)
    try:
        container.put("/tmp", {"seed.iso": cloud_init.iso(spec, keys, guest.user, f"by-hand-{time.time_ns()}")})
        container.start()
        address = container.addresses().address

        def connect(seconds: float) -> client.Connection:
            sock = socket.create_connection((address, 2222), seconds)
            return client.log_in(sock, guest.user, keys, seconds)

        def check() -> None:
            assert not container.ended, bytes(container.stderr).decode()

        target = readiness.Target("by hand", Console(container), check)
        connection = readiness.wait_for_login(target, connect, spec.boot_timeout)
        readiness.wait_for_cloud_init(target, connection, provision_limit.Limit(spec.boot_timeout))
        taken = time.perf_counter() - began
        connection.close()
    finally:
        container.close()
    return taken


def measure() -> list[Row]:
    """Measure in turn."""
    settings = resolve([environment(os.environ)])
    spec = merge(settings.shape, {"template": False})
    with build_launcher(settings, SILENT) as launcher:
        launcher.guests.get(spec.image)
        network = launcher.engine.create_network(NetworkPlan(f"virtainers-{RUN}"), RUN)
        try:
            ours, plain = [], []
            for _ in range(PAIRS):
                taken, accel = plugin(launcher, spec)
                ours.append(taken)
                plain.append(by_hand(launcher, spec, network.name, settings.store, accel))
        finally:
            network.close()
    return [Row("a boot until it is ready", tuple(ours), "s", f"a plain QEMU ({accel})", tuple(plain), 1.1)]
