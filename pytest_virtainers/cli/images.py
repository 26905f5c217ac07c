"""Commands for guest images in the catalogue and in the store."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from pytest_virtainers.cli import shape
from pytest_virtainers.cli.common import Command, answer, as_json, note, progress, settings, show
from pytest_virtainers.cli.complete import image_names, image_names_or_files
from pytest_virtainers.config.arguments import ARGUMENTS
from pytest_virtainers.errors import EngineError, EngineNotFound, ImageError

if TYPE_CHECKING:
    from pytest_virtainers.config.spec import Spec
    from pytest_virtainers.launching.launcher import Launcher

_ARCH = shape.options([ARGUMENTS["arch"]])
_ARCH_AND_FIRMWARE = shape.options([ARGUMENTS["arch"], ARGUMENTS["firmware"]])


@click.command(cls=Command)
@click.argument("image", required=False, shell_complete=image_names_or_files)
@shape.options(shape.OF_TEMPLATES)
@shape.seed_iso
@click.option("--cold", is_flag=True, help="Create no template: for VMs that boot; as --template off.")
def build(image: str | None, **given: Any) -> None:
    """Create the images and the template of a VM, unless they exist.

    The options are those of virtainers run, which then starts such a VM in seconds. For the tests of a project, use
    pytest --virtainer-warm.

    \b
    For example:
      virtainers build
      virtainers build ubuntu-24.04 --ram 2G --package nginx
      virtainers build --cold                  # only the runtime image and the guest image
    """  # noqa: D301
    from pytest_virtainers.launching.build import build_launcher

    spec = _spec(image=image, **given)
    with build_launcher(settings(), progress()) as launcher:
        launcher.warm(spec)
        answer(f"{_ready(launcher, spec)}{', with its template' if spec.template else ''}")


@click.group
def images() -> None:
    """Manage guest images."""


@images.command("ls")
@as_json
def ls(as_json: bool) -> None:
    """List the catalogue, and the size of images in the store.

    \b
    For example:
      virtainers images ls
      virtainers images ls --json | jq -r '.[] | select(.arch == "arm64") | .name'
    """  # noqa: D301
    from pytest_virtainers.guests.catalogue import Published, catalogue

    entries: dict[int, tuple[list[str], object]] = {}
    known = catalogue()
    for name, entry in known.items():
        entries.setdefault(id(entry), ([], entry))[0].append(name)
    sizes, rows = _sizes_mib(), []
    for names, _ in entries.values():
        entry = known[names[0]]
        source = entry.url if isinstance(entry, Published) else f"built from packages ({entry.suite})"
        size = sizes.get(entry.place)
        rows.append(
            {
                "name": entry.name,
                "aliases": [name for name in names if name != entry.name],
                "user": entry.user,
                "arch": entry.arch,
                "source": source,
                "size_mib": size,
                "in store": "" if size is None else f"{size} MiB",
                "note": entry.note if isinstance(entry, Published) else "",
            }
        )
    if as_json:
        for row in rows:
            del row["in store"]  # size_mib has it
    show(rows, as_json=as_json, columns=("name", "arch", "user", "in store", "source"))
    if not as_json:
        answer("\n".join(("", *(f"{row['name']}: {row['note']}" for row in rows if row["note"]))))
        print(
            "",
            "Published images are not tested; downloads are compared with their known digests.",
            sep="\n",
        )


def _sizes_mib() -> dict[str, int]:
    """Return the sizes of store entries by place, or nothing without an engine, as `ls` must work without one."""
    from pytest_virtainers.launching.build import build_launcher
    from pytest_virtainers.store.entries import contents

    try:
        with build_launcher(settings(), progress()) as launcher:
            if not launcher.runtime_image.is_built():  # then the store is empty
                return {}
            with launcher.store.open() as store:
                return {each.place: each.size_mib for each in contents(store)}
    except (EngineNotFound, EngineError) as error:
        note(f"cannot list the store: {error}")
        return {}


images.add_command(build)


@images.command("pull")
@click.argument("names", nargs=-1, required=True, shell_complete=image_names_or_files)
@_ARCH
def pull(names: tuple[str, ...], arch: str | None) -> None:
    """Download, copy or build guest images into the store.

    NAMES are names in the catalogue, paths, URLs or container images (docker-image://NAME).

    \b
    For example:
      virtainers images pull debian-13 fedora-44
      virtainers images pull ubuntu-24.04 --arch arm64
      virtainers images pull 'https://example.org/disk.qcow2.xz#sha256=…'
    """  # noqa: D301
    for name in names:
        _pull(name, arch)


@images.command("bake")
@click.argument("image", shell_complete=image_names)
@click.option("--tag", help="Name of the container image, by default localhost/virtainers/debian:13 for debian-13.")
@_ARCH_AND_FIRMWARE
def bake(image: str, tag: str | None, arch: str | None, firmware: str | None) -> None:
    """Build a container image with the disk of IMAGE, which docker run and podman run start as a VM.

    \b
    For example:
      virtainers images bake debian-13
      docker run -d --privileged -v ~/.ssh/id_ed25519.pub:/tmp/id_rsa.pub:ro localhost/virtainers/debian:13
      virtainers run docker-image://localhost/virtainers/debian:13
    """  # noqa: D301
    from pytest_virtainers.guests import container_disk, images
    from pytest_virtainers.guests.catalogue import Entry, catalogue
    from pytest_virtainers.launching.build import build_launcher

    spec = _spec(image=image, arch=arch, firmware=firmware)
    found = images.find(image, spec.arch)
    name = container_disk.tag_for(found.name if isinstance(found, Entry) and image in catalogue() else image, tag)
    with build_launcher(settings(), progress()) as launcher:
        guest, runtime_image = launcher.guests.of(spec), launcher.runtime_image.reference()
        guest = replace(guest, firmware=guest.boots_with(spec.firmware))
        with launcher.store.open() as store, progress().step(f"building container image {name}") as step:
            print(container_disk.bake(guest, name, runtime_image, store, step.update))


@images.command("rm")
@click.argument("names", nargs=-1, required=True, shell_complete=image_names)
def rm(names: tuple[str, ...]) -> None:
    """Remove guest images of the catalogue, and their templates, from the store.

    \b
    For example:
      virtainers images rm fedora-44; virtainers images pull fedora-44     # the current version
    """  # noqa: D301
    from pytest_virtainers.guests.catalogue import catalogue
    from pytest_virtainers.launching.build import build_launcher
    from pytest_virtainers.store.entries import contents, remove
    from pytest_virtainers.support.paths import locked

    known = catalogue()
    if unknown := [name for name in names if name not in known]:
        raise ImageError(f"{unknown[0]} is not in the catalogue. To remove other images: virtainers store rm")
    with build_launcher(settings(), progress()) as launcher, launcher.store.open() as store, locked("store"):
        entries = contents(store)
        places = {known[name].place for name in names}
        if missing := places - {each.place for each in entries}:
            raise ImageError(f"{min(missing)} is not in the store. List its entries: virtainers store ls")
        gone = [each for each in entries if each.place in places or each.base in places]
        if used := [each.place for each in gone if each.in_use]:
            raise ImageError(f"{used[0]} is in use by a VM or by a test run")
        remove(store, [each.place for each in gone])
    for each in gone:
        answer(f"removed {each.place} ({each.size_mib} MiB)")


@images.command("verify")
@click.argument("names", nargs=-1, shell_complete=image_names)
@as_json
def verify(names: tuple[str, ...], as_json: bool) -> int:
    """Compare guest images in the store with the digests that they had when they were stored (default: all).

    \b
    For example:
      virtainers images verify
      virtainers images verify debian-13 --json
    """  # noqa: D301
    from pytest_virtainers.guests.catalogue import catalogue
    from pytest_virtainers.launching import integrity
    from pytest_virtainers.launching.build import build_launcher
    from pytest_virtainers.store.entries import contents

    known, rows = catalogue(), []
    if unknown := [name for name in names if name not in known]:
        raise ImageError(f"{unknown[0]} is not in the catalogue. List its names: virtainers images ls")
    with build_launcher(settings(), progress()) as launcher, launcher.store.open() as store:
        wanted = {known[name].place for name in names}
        for each in contents(store):
            if not each.place.startswith("guests/") or (names and each.place not in wanted):
                continue
            wanted.discard(each.place)
            with progress().step(f"reading {each.place}"):
                (disk,) = integrity.read(store.container, [each.place])
            found = "missing" if disk.error == integrity.MISSING else disk.sha256 or disk.error
            rows.append({"place": each.place, "sha256": found, "was": disk.was})
            if not as_json:
                answer(f"{each.place}: {f'{found}, expected {disk.was}' if disk.damaged else 'unchanged'}")
    missing = sorted(wanted)
    if as_json:
        show([*rows, *({"place": place, "sha256": None, "was": None} for place in missing)], as_json=True)
    else:
        for place in missing:
            answer(f"{place}: not in the store")
    return 1 if missing or any(row["sha256"] != row["was"] for row in rows) else 0


def _spec(**given: Any) -> Spec:
    """Return the specification of a VM with a guest image, from options and settings."""
    from pytest_virtainers.config.spec import merge

    return merge(settings().shape, shape.arguments(**given))


def _pull(image: str | None, arch: str | None) -> None:
    from pytest_virtainers.launching.build import build_launcher

    spec = _spec(image=image, arch=arch)
    with build_launcher(settings(), progress()) as launcher:
        answer(_ready(launcher, spec))


def _ready(launcher: Launcher, spec: Spec) -> str:
    guest = launcher.guests.of(spec)
    return f"{spec.image} is ready on {launcher.engine}: {guest.key}, sha256 {guest.digest}"


COMMANDS = (build, images)
