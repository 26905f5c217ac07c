"""UEFI (OVMF): the code comes with the image, the variables are a file of the VM next to its overlay.

https://www.qemu.org/docs/master/system/i386/pc.html and docs/interop/firmware.json of QEMU
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from virtainer.exit_reasons import End, Reason
from virtainer.guest_disk import no_room

CODE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
NO_VARIABLES = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")


def path(directory: Path) -> Path:
    """Return the path of the variables of the VM whose overlay is in this directory."""
    return directory / "local_vars.fd"


def variables(directory: Path, template: Path | None) -> Path:
    """Return the VM's variables: its present ones, or a copy of its template's or of the defaults.

    Raises End when there is no space for them, or the template lacks its own.
    """
    own = path(directory)
    if own.exists():
        return own
    if template is not None and not path(template).exists():
        raise End(Reason.TEMPLATE, f"the template {template} is incomplete: it has no {own.name}")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        part = own.with_name(own.name + ".part")
        shutil.copyfile(NO_VARIABLES if template is None else path(template), part)
        part.replace(own)
    except OSError as error:
        raise no_room(directory, error) from None
    return own


def open_flash(own: Path) -> dict[str, int]:
    """Open code and variables, by their names in `machine.Handles`; raises End."""
    try:
        return {"code": os.open(CODE, os.O_RDONLY), "variables": os.open(own, os.O_RDWR)}
    except OSError as error:
        raise End(Reason.STORAGE, f"UEFI needs {error.filename}: {error.strerror}") from None
