"""UEFI (OVMF): its code is of the image, its variables are a file of the VM's own, beside its overlay.

https://www.qemu.org/docs/master/system/i386/pc.html and docs/interop/firmware.json of QEMU
"""

from __future__ import annotations

import shutil
from pathlib import Path

from virtainer.image import no_room

CODE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
_NO_VARIABLES = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")


def path(directory: Path) -> Path:
    """Where the variables of the VM are whose overlay is in this directory."""
    return directory / "local_vars.fd"


def variables(directory: Path, template: Path | None) -> Path:
    """Give the VM's variables: those that it has, else a copy of its template's, else none but the defaults.

    Raises End when there is no room for them.
    """
    own = path(directory)
    try:
        if not own.exists():
            directory.mkdir(parents=True, exist_ok=True)
            part = own.with_name(own.name + ".part")
            shutil.copyfile(path(template) if template else _NO_VARIABLES, part)
            part.replace(own)
    except OSError as error:
        raise no_room(directory, error) from None
    return own
