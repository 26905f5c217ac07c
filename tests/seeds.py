"""Ready cloud-init seeds."""

import io
from pathlib import Path

import pycdlib


def ready(path: Path, **files: str) -> Path:
    """Write a seed with these files."""
    image = pycdlib.PyCdlib()
    image.new(joliet=3, vol_ident="cidata")
    for number, (name, content) in enumerate(files.items()):
        data = content.encode(errors="surrogateescape")
        image.add_fp(io.BytesIO(data), len(data), f"/F{number}.;1", joliet_path=f"/{name.replace('_', '-')}")
    image.write(str(path))
    image.close()
    return path
