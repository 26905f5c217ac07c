"""The supervisor: a container's PID 1, from the environment to a running VM and its end."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from virtainer import (
    clone_agent,
    dns,
    guest_disk,
    ipv6,
    isolation,
    machine,
    network,
    overlay,
    privileges,
    qmp,
    seed,
    signals,
    ssh_serial,
    template,
)
from virtainer.console import Console
from virtainer.events import note, report
from virtainer.exit_reasons import End, Reason
from virtainer.protocol import SSH_TCP_PORT
from virtainer.settings import CACHE_MODES, Settings
from virtainer.supervise import Supervisor, linger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RUN = Path("/run/virtainer")  # root's only: who may `docker exec` may use what is in it
DNSMASQ_LOG = RUN / "dnsmasq.log"
_LOG_SIZE = 2**20
QEMU_USER = "qemu"
_RESTORE_SECONDS = 30


def main() -> None:
    """Run a VM as the environment says; the last event and the exit code say how it ended."""
    try:
        end = run()
    except End as early:
        end = early
    except Exception as error:  # noqa: BLE001  (whatever it is, the last event must have it)
        import traceback  # 2 ms that no other start pays

        for line in traceback.format_exc().splitlines():
            note(line)
        end = End(Reason.INTERNAL, f"{type(error).__name__}: {error}. This is a bug of virtainers: please report it")
    report("end", reason=end.reason.word, detail=str(end), crashed=end.crashed)
    os._exit(end.reason.code)  # takes QEMU along: PID 1 without CAP_KILL could not signal another user's process


def run() -> End:
    """Prepare the VM, start it, and stay until it ends."""
    started = time.monotonic()
    signals.end_at_once()
    settings = Settings.from_env(os.environ)
    if settings.lease:
        signals.watch_lease()
    privileges.require()
    RUN.mkdir(mode=0o700, parents=True, exist_ok=True)

    net = network.plan(settings.cidr, settings.name)
    kvm = privileges.open_kvm(settings.accel, settings.arch)
    storage = _storage(settings, kvm)

    machine.DEVICES_ADDED.unlink(missing_ok=True)  # left over when a container is started again
    queue = signals.queue()
    line, port, session, lasting = _ends(virtio=settings.virtio)
    files = storage.files()
    prepared = time.monotonic() - started
    report(
        "started",
        name=settings.name,
        ram_mib=settings.ram,
        cpus=settings.cpus,
        accel="tcg" if kvm is None else "kvm",
        disk=str(storage.base.path),
        format=storage.base.format,
        prepared_s=round(prepared, 4),
    )
    qemu = _start_qemu(settings, storage.base.format, files, lasting, kvm)

    # QEMU takes a moment to start: until then the network is there, too.
    callers = _build_network(net, settings, restore=storage.restore)
    dnsmasq = _start_dnsmasq(net, names_only=settings.names_only)
    console = Console(line, RUN / "console.log", _listen(RUN / "console.sock"), stdout=1)
    helper = clone_agent.CloneAgent(port, settings.name)
    ssh = ssh_serial.SSHSerial(session, _listen(RUN / "line.sock"), kept=settings.template_save)
    restored = False
    if callers:
        ssh.listen(socket.create_server(("", SSH_TCP_PORT)), callers)

    def before_it_runs(restoring: float) -> None:
        nonlocal restored
        restored = True
        helper.after_restore(clone=settings.template is not None)
        starting = time.monotonic() - started - prepared - restoring
        report("restored", prepared_s=round(prepared, 4), qemu_s=round(starting, 4), state_s=round(restoring, 4))

    if storage.restore:
        _restore(qemu, ram_from_file=settings.template is not None, before_it_runs=before_it_runs)
    watch = partial(
        Supervisor,
        dnsmasq=dnsmasq,
        dnsmasq_log=str(DNSMASQ_LOG),
        queue=queue,
        grace=settings.shutdown_timeout,
        linger=settings.linger,
        on_snapshot=(ssh.after_snapshot, helper.after_snapshot),
        on_line_closed=ssh.hang_up,
    )
    end, booting = _supervise(qemu, watch)
    if storage.restore and not restored and end.reason is Reason.QEMU:
        end = End(Reason.TEMPLATE, f"{settings.template or settings.resume} does not restore: {end}")
    while booting and boots_again(end, settings, kvm):
        report("boot-crashed", detail=str(end))
        ssh.hang_up()
        end, booting = _supervise(_boot_again(settings, lasting), watch, again=True)
    for fd in lasting.values():  # now the console ends, too
        os.close(fd)
    if settings.linger:
        linger(end, queue)
    if end.reason is not Reason.LEASE:
        console.finish(seconds=2)
    return end


def _ends(*, virtio: bool) -> tuple[socket.socket, socket.socket, socket.socket, dict[str, int]]:
    """Return our ends of the serial console and of the two virtio-serial ports, and what QEMU has on its side.

    That outlives QEMU, by its names in `machine.Handles`, so that another one can inherit it: the tap keeps its
    address and rules, and readers of the console notice nothing.
    """
    line, qemu_line = socket.socketpair()
    port, qemu_port = socket.socketpair()
    session, qemu_session = socket.socketpair()
    lasting = {"tap": network.make_tap(), "console": qemu_line.detach(), "qmp": _listen(qmp.SOCKET).detach()}
    if virtio:
        lasting |= {"port": qemu_port.detach(), "line": qemu_session.detach()}
    else:
        qemu_port.close()
        qemu_session.close()
    return line, port, session, lasting


class _Qemu(NamedTuple):
    """A QEMU that was started."""

    process: subprocess.Popen[bytes]
    link: socket.socket
    monitor: qmp.Monitor  # on that


def _start_qemu(
    settings: Settings, base_format: str, files: dict[str, int], lasting: dict[str, int], kvm: int | None
) -> _Qemu:
    """Start QEMU, which alone has the files from now on; the lasting descriptors stay open here as well."""
    link, qemu_link = socket.socketpair()
    handles = machine.Handles(**files, **lasting, monitor=qemu_link.detach(), kvm=kvm)
    process = subprocess.Popen(
        machine.argv(settings, base_format, handles),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        pass_fds=handles.all(),
        user=QEMU_USER,
        group=QEMU_USER,
        extra_groups=[],
        cwd="/",
        start_new_session=True,  # a ^C on the container's terminal is ours to handle
    )
    for fd in {*handles.all()}.difference(lasting.values()):
        os.close(fd)
    return _Qemu(process, link, qmp.Monitor(link))


def _supervise(qemu: _Qemu, watch: Callable[..., Supervisor], *, again: bool = False) -> tuple[End, bool]:
    """Return why QEMU ended, and whether the guest was booting after a reset.

    Args:
        qemu: it was just started.
        watch: makes a `Supervisor` of it.
        again: it was started since another one had crashed.
    """
    began = time.monotonic()
    assert qemu.process.stderr  # noqa: S101  (for the type checker: it is a pipe)
    with qemu.link, qemu.process.stderr as stderr:
        supervisor = watch(qemu=qemu.process.pid, stderr=stderr, monitor=qemu.monitor, monitor_fd=qemu.link.fileno())
        end = supervisor.run()
    if again and end.crashed:
        before = f"it crashed {time.monotonic() - began:.0f} s before, too, and was started again"
        end = End(end.reason, f"{end} ({before})", crashed=True)
    return end, supervisor.booting


def boots_again(end: End, settings: Settings, kvm: int | None) -> bool:
    """Return whether to start QEMU again, and boot from the disk, if it ended while the guest booted after a reset.

    Seen in one boot of a thousand: an emulator of several processors crashes when a guest maps its devices. The reset
    has cost the guest its memory anyway; but devices that were added would be lost with QEMU.
    """
    emulated = kvm is None
    return end.crashed and emulated and not settings.template_save and not machine.DEVICES_ADDED.exists()


def _boot_again(settings: Settings, lasting: dict[str, int]) -> _Qemu:
    """Start QEMU in place of one that crashed, without KVM; there is an overlay now, so it boots from that."""
    storage = _storage(settings._replace(resume=None), None)
    return _start_qemu(settings, storage.base.format, storage.files(), lasting, None)


def _build_network(net: network.Network, settings: Settings, *, restore: bool) -> set[str]:
    """Set up the guest's network; return the addresses from which the line of a restored VM may be called."""
    routes = Path("/proc/net/route").read_text()
    network.WAY_OUT.write_text(network.way_out(routes) + ipv6.way_out())
    callers = network.neighbours(routes) if restore else set()
    with isolation.unchanged():
        closed = isolation.look(settings)
        network.build(net, callers, isolation.rules(closed, network.TAP, inner=(f"{net.gateway}/24", ipv6.NETWORK)))
    return callers


def _restore(qemu: _Qemu, *, ram_from_file: bool, before_it_runs: Callable[[float], None]) -> None:
    qemu.link.settimeout(_RESTORE_SECONDS)
    with contextlib.suppress(EOFError, BrokenPipeError):  # the supervisor's loop finds out why
        template.resume(qemu.monitor, ram_from_file=ram_from_file, before_it_runs=before_it_runs)
    qemu.link.settimeout(None)


def _start_dnsmasq(net: network.Network, *, names_only: bool) -> int:
    only = isolation.own_networks() if names_only else None
    argv = network.dnsmasq_argv(net, dns.serve(only, ipv6=net.ipv6), names_only=names_only)
    with DNSMASQ_LOG.open("wb") as log, _small_files():
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            restore_signals=False,  # a full log does not end it by SIGXFSZ
        ).pid


@contextlib.contextmanager
def _small_files() -> Iterator[None]:
    """Limit the files of a process that is started in the block: a guest can make it complain without end."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (_LOG_SIZE, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


class _Storage(NamedTuple):
    """The files that the VM starts from."""

    base: guest_disk.Base
    files: Callable[[], dict[str, int]]
    """Opens the files, by their names in `machine.Handles`, when the last of them is made."""
    restore: bool
    """Whether the VM's state is restored."""


def _storage(settings: Settings, kvm: int | None) -> _Storage:
    direct = CACHE_MODES[settings.cache].direct
    if settings.template and settings.template_save:
        restore = True
        origin = template.load(settings, settings.template, kvm)
        base = origin.base
        iso = seed.prepare(settings.seed_iso, RUN / "seed")
        template.record(settings, kvm, base, iso)
        more = template.copy_files(settings, origin)
        disk = overlay.prepare(base, settings.image_dir, settings.disk_size)
    elif settings.template:
        origin = template.load(settings, settings.template, kvm)
        restore = not overlay.path(settings.image_dir).exists()
        disk = overlay.prepare(origin.layer, settings.image_dir, settings.disk_size)
        base, iso, more = origin.base, origin.seed, template.open_files(origin, restore=restore)
    else:
        restore = False
        base = guest_disk.find(settings)
        disk = overlay.prepare(base, settings.image_dir, settings.disk_size)
        iso, more = seed.prepare(settings.seed_iso, RUN / "seed"), {}
        if settings.template_save:
            template.record(settings, kvm, base, iso)
            more = template.new_files(settings)
        elif settings.resume:
            more, restore = template.state_to_resume(settings, settings.resume, kvm), True

    def files() -> dict[str, int]:
        return {
            "base": os.open(base.path, os.O_RDONLY),
            "overlay": overlay.open_file(disk(), direct=direct),
            "seed": os.open(iso, os.O_RDONLY),
            **more,
        }

    if not settings.keeps_variables:
        return _Storage(base, files, restore)
    from virtainer import firmware  # 2 ms that only they pay

    own = firmware.variables(settings.image_dir, settings.template)

    def and_flash() -> dict[str, int]:
        return {**files(), **firmware.open_flash(own)}

    return _Storage(base, and_flash, restore)


def _listen(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)  # left over when a container is started again
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen(8)
    return server
