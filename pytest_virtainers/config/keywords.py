"""The types of what the marker `virtainer`, `vm_factory` and `launch` take; what is allowed, `spec.check` says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypedDict

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from pytest_virtainers.vm.vm import VM

    Switch = bool | Literal["on", "off"]


class VMArguments(TypedDict, total=False):
    """What one machine has, beside its image and its name; None is as if it were not given.

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
    """What one machine has, beside its name."""

    image: str | Path | None
