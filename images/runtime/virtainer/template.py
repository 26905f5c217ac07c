"""Templates: a VM saved at one instant, and clones that resume from it.

A virtainer with TEMPLATE_SAVE=on keeps its RAM in a file next to its overlay; the command `save`
(`docker exec CONTAINER save`) stops it and adds the rest of the machine's state. IMAGE_DIR then holds a template: the
overlay, `ram`, `state`, `seed.iso` and, written last, `template.json`. A virtainer with TEMPLATE=FOLDER maps that RAM
privately, so that clones share what they do not change, and writes to another overlay. One with both resumes
from copies of the files in FOLDER, so that another template can be saved, which does not depend on that one.

https://www.qemu.org/docs/master/system/vm-templating.html
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from virtainer import guest_disk, overlay, protocol, qmp
from virtainer.exit_reasons import End, Reason
from virtainer.machine import STATE, board

if TYPE_CHECKING:
    from collections.abc import Callable

    from virtainer.settings import Settings

FACTS = Path("/run/virtainer/template.json")
_FORMAT = 1
_PROGRAMS = Path("/usr/bin")
_POLL_SECONDS = 0.002
_RAM_STAYS_IN_ITS_FILE = "x-ignore-shared"


class Template(NamedTuple):
    """A template that can be restored here."""

    folder: Path
    base: guest_disk.Base
    disk_size: int  # bytes that the guest sees
    prints: dict[str, str]  # the fingerprints of what was saved

    @property
    def layer(self) -> guest_disk.Base:
        """The saved VM's disk, on which a clone's overlay is made."""
        path = overlay.path(self.folder)
        return guest_disk.Base(path, "qcow2", self.disk_size, self.prints[path.name])

    @property
    def seed(self) -> Path:
        """The saved VM's seed: cloud-init must find it again at a reboot."""
        return self.folder / "seed.iso"


def load(settings: Settings, folder: Path, kvm: int | None) -> Template:
    """Read a template's facts. Raises End when it is not a template, or is for another machine."""
    try:
        facts = json.loads((folder / "template.json").read_text())
        base = guest_disk.Base(
            Path(facts["base"]["path"]), *(facts["base"][name] for name in ("format", "size", "print"))
        )
        if complaint := difference(facts["machine"], machine_facts(settings, kvm)):
            raise End(Reason.TEMPLATE, f"the template {folder} does not fit: {complaint}")
        if guest_disk.fingerprint(guest_disk.readable(base.path)) != base.fingerprint:
            raise End(Reason.TEMPLATE, f"the template {folder} was made on another guest disk than {base.path}")
        return Template(folder, base, facts["disk_size"], facts["prints"])
    except (OSError, ValueError, KeyError) as error:
        raise End(Reason.TEMPLATE, f"{folder} is not a template: {type(error).__name__}: {error}") from None


def machine_facts(settings: Settings, kvm: int | None) -> dict[str, Any]:
    """Return the facts that must be the same where a template is saved and where it is restored."""
    qemu = (_PROGRAMS / board(settings).qemu).stat()
    return {
        "format": _FORMAT,
        "machine": board(settings).machine,
        "RAM": settings.ram,
        "CPU": settings.cpus,
        "virtio": settings.virtio,
        "ARCH": settings.arch,
        "CIDR": settings.cidr,
        "firmware": settings.firmware,
        "qemu": f"{qemu.st_size}-{qemu.st_mtime_ns}",
        # An emulated processor is the same everywhere; with KVM it is the host's.
        "processor": "emulated" if kvm is None else processor(Path("/proc/cpuinfo").read_text()),
    }


def processor(cpuinfo: str) -> str:
    """Return the host's processor: model and flags, or what the kernel shows on ARM."""
    fields = r"^(model name|flags|CPU implementer|CPU variant|CPU part|CPU revision|Features)\s*: (.*)$"
    return "; ".join(dict(re.findall(fields, cpuinfo, re.MULTILINE)).values())


def difference(saved: dict[str, Any], here: dict[str, Any]) -> str | None:
    """Return a sentence about the first fact in which two machines differ, or None."""
    # Evidence from before these were recorded.
    saved = {"ARCH": "amd64", "machine": "that of an earlier version", **saved}
    for name, value in here.items():
        if saved.get(name) != value:
            return f"{name} is {value!r} here, and was {saved.get(name)!r}"
    return None


def record(settings: Settings, kvm: int | None, base: guest_disk.Base, seed: Path) -> None:
    """Prepare IMAGE_DIR for `save`: the seed, and the facts that `save` will write last."""
    facts = {
        "machine": machine_facts(settings, kvm),
        "base": {
            "path": str(base.path.resolve()),
            "format": base.format,
            "size": base.size,
            "print": base.fingerprint,
        },
        "disk_size": max(settings.disk_size, base.size),
    }
    import shutil  # takes 2 ms, and clones do not need it

    try:
        shutil.copyfile(seed, settings.image_dir / "seed.iso")
    except OSError as error:
        raise guest_disk.no_room(settings.image_dir, error) from None
    FACTS.write_text(json.dumps({"folder": str(settings.image_dir), "facts": facts}))


def new_files(settings: Settings) -> dict[str, int]:
    """Create the files that QEMU fills, `ram` and `state`, and return their descriptors.

    QEMU's user opens the RAM file again by its descriptor, and owns no file here: so the file is open to all, in a
    folder that is not.
    """
    try:
        ram = os.open(settings.image_dir / "ram", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        os.fchmod(ram, 0o666)
        os.ftruncate(ram, settings.ram * 2**20)
        state = os.open(settings.image_dir / "state", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    except OSError as error:
        raise guest_disk.no_room(settings.image_dir, error) from None
    return {"ram": ram, "state": state}


def copy_files(settings: Settings, template: Template) -> dict[str, int]:
    """Copy a template's RAM and disk into IMAGE_DIR; return descriptors to resume from them and to save again.

    Raises End when there is no space, or a file of the template has changed.
    """
    from virtainer import copying  # clones do not need it

    origin = open_files(template, restore=True)
    os.close(origin["layer"])
    os.close(origin["ram"])
    layer, ram = overlay.path(settings.image_dir), settings.image_dir / "ram"
    try:
        copying.sparse(template.layer.path, layer)
        overlay.base_record(layer).write_text(template.base.fingerprint + "\n")
        copying.sparse(template.folder / "ram", ram)
        ram.chmod(0o666)  # as in `new_files`
        state = os.open(settings.image_dir / "state", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        return {"ram": os.open(ram, os.O_RDWR), "state": state, "origin": origin["state"]}
    except OSError as error:
        raise guest_disk.no_room(settings.image_dir, error) from None


def state_to_resume(settings: Settings, folder: Path, kvm: int | None) -> dict[str, int]:
    """Open the state that was saved as evidence; raises End when it is for another machine."""
    try:
        facts = json.loads((folder / protocol.RESUME_FACTS).read_text())
        if complaint := difference(facts["machine"], machine_facts(settings, kvm)):
            raise End(Reason.TEMPLATE, f"the memory in {folder} does not fit: {complaint}")
        return {"state": os.open(folder / protocol.EVIDENCE_STATE, os.O_RDONLY)}
    except (OSError, ValueError, KeyError) as error:
        raise End(Reason.TEMPLATE, f"{folder} has no memory: {type(error).__name__}: {error}") from None


def open_files(template: Template, *, restore: bool) -> dict[str, int]:
    """Open the files that QEMU reads of a template; a clone that already has an overlay boots from that instead."""
    names = {"layer": overlay.path(template.folder)}
    if restore:
        names |= {"ram": template.folder / "ram", "state": template.folder / "state"}
    try:
        for path in names.values():
            if guest_disk.fingerprint(path) != template.prints[path.name]:
                raise End(Reason.TEMPLATE, f"the template {template.folder} is damaged: {path.name} has changed")
        return {name: os.open(path, os.O_RDONLY) for name, path in names.items()}
    except OSError as error:
        raise End(Reason.TEMPLATE, f"the template {template.folder} is incomplete: {error}") from None


def resume(monitor: qmp.Monitor, *, ram_from_file: bool, before_it_runs: Callable[[float], None]) -> None:
    """Restore the state, with or without RAM in it, and start the VM.

    `before_it_runs` is called in between, with the seconds that the state took: what it writes to the VM is there as
    soon as the VM runs.

    Raises End when QEMU refuses or does not answer (its socket has a time limit), EOFError when it has ended.
    """
    try:
        _let_ram_be(monitor, on=ram_from_file)
        began = time.monotonic()
        monitor.ask("migrate-incoming", uri=f"file:{STATE}")
        while monitor.ask("query-status")["status"] == "inmigrate":
            time.sleep(_POLL_SECONDS)
        before_it_runs(time.monotonic() - began)
        monitor.ask("cont")
        _let_ram_be(monitor, on=False)  # for snapshots of the clone
    except (qmp.Refused, TimeoutError) as error:
        raise End(Reason.TEMPLATE, f"the template does not restore: {error}") from None


def _let_ram_be(monitor: qmp.Monitor, *, on: bool) -> None:
    monitor.ask("migrate-set-capabilities", capabilities=[{"capability": _RAM_STAYS_IN_ITS_FILE, "state": on}])


def save(monitor: qmp.Monitor) -> None:
    """Stop the VM and write its state. Raises qmp.Refused, or EOFError when QEMU has ended."""
    from virtainer.devices import added  # clones do not need it

    if devices := added(monitor):
        raise qmp.Refused(
            f"{', '.join(devices)}: added while the machine ran; its clones would have no such device. Remove it"
        )
    monitor.ask("stop")
    _let_ram_be(monitor, on=True)
    monitor.ask("migrate", uri=f"file:{STATE}")
    while (progress := monitor.ask("query-migrate"))["status"] != "completed":
        if progress["status"] in {"failed", "cancelled"}:
            raise qmp.Refused(f"migrate: {progress.get('error-desc', progress['status'])}")
        time.sleep(_POLL_SECONDS)


def complete(folder: Path, facts: dict[str, Any]) -> None:
    """Complete a template whose other files are in the folder. Raises OSError."""
    from virtainer import digests, firmware  # clones do not need them

    files = (folder / "ram", folder / "state", overlay.path(folder))
    more = [path for path in (folder / "seed.iso", firmware.path(folder)) if path.exists()]
    for path in (*files, *more):
        path.chmod(0o444)
    prints = {path.name: guest_disk.fingerprint(path) for path in files}
    whole = {path.name: digests.sparse(path) for path in (*files, *more)}
    part = folder / "template.json.part"
    part.write_text(json.dumps({**facts, "prints": prints, "digests": whole}, indent=2) + "\n")
    part.chmod(0o444)
    part.replace(folder / "template.json")


def main() -> int:
    """Run `save`: exit code 0 when the template is complete, 1 when not; the VM stays stopped."""
    try:
        prepared = json.loads(FACTS.read_text())
    except FileNotFoundError:
        return _complain("this virtainer was not started with TEMPLATE_SAVE=on")
    folder = Path(prepared["folder"])
    try:
        with qmp.connect() as connection:
            save(qmp.Monitor(connection))
        complete(folder, prepared["facts"])
    except (OSError, EOFError, qmp.Refused) as error:
        return _complain(str(error) or "QEMU ended")
    return 0


def _complain(text: str) -> int:
    print(f"save: {text}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
