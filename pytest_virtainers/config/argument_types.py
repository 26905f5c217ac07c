"""The types of the arguments of `vm_factory` and `launch`, for type checkers; `spec.check` checks the values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypedDict

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from pytest_virtainers.vm.vm import VM

    Switch = bool | Literal["on", "off"]


class VMArguments(TypedDict, total=False):
    """The arguments of a VM, without image and name; `None` counts as not given.

    Sizes are MiB, or text such as `512M` and `2G`; times are seconds.
    """

    ram: int | str | None
    cpus: int | str | None
    disk: int | str | None
    accel: Literal["auto", "kvm", "tcg"] | None
    arch: Literal["auto", "amd64", "arm64"] | None
    firmware: Literal["auto", "bios", "uefi"] | None
    env: Mapping[str, str] | None
    boot_timeout: float | str | None
    provision_timeout: float | str | None
    internet: Switch | None
    template: Switch | None
    hostname: str | None
    user: str | None
    user_data: Mapping[str, Any] | str | Path | None
    meta_data: Mapping[str, Any] | str | Path | None
    packages: Sequence[str] | None
    run_commands: Sequence[str | Sequence[str]] | None
    files: Mapping[str, str | bytes | Path] | None
    authorized_keys: Sequence[str | Path] | None
    prepare: Callable[[VM], object] | None
    identity: Literal["template", "fresh"] | None
    network: str | Mapping[str, object] | None
    ip: int | str | None
    nics: Sequence[str | Mapping[str, object]] | None


class Arguments(VMArguments, total=False):
    """The arguments of a VM, with the image and without the name."""

    image: str | Path | None
