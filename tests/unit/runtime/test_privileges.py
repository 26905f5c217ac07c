"""The rights that the container needs."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
from virtainer import privileges
from virtainer.exit_reasons import End, Reason

DOCKER_DEFAULT = 0xA80425FB
NET_ADMIN = 1 << 12


def status(effective: int) -> str:
    return f"Name:\tpython3\nCapInh:\t0000000000000000\nCapEff:\t{effective:016x}\nCapBnd:\t0000003fffffffff\n"


def test_docker_lacks_only_net_admin() -> None:
    assert privileges.missing_capabilities(status(DOCKER_DEFAULT)) == ["--cap-add NET_ADMIN"]
    assert privileges.missing_capabilities(status(DOCKER_DEFAULT | NET_ADMIN)) == []


def test_without_any_every_flag_is_named() -> None:
    assert privileges.missing_capabilities(status(0)) == [
        f"--cap-add {name}" for name in ("NET_ADMIN", "NET_BIND_SERVICE", "NET_RAW", "SETUID", "SETGID")
    ]


@pytest.mark.parametrize(
    ("flags", "usable"),
    [("fpu vmx sse", True), ("fpu svm", True), ("fpu svmx vmxoff", False), ("fpu hypervisor", False)],
)
def test_kvm_needs_the_flags_of_the_processor(flags: str, usable: bool) -> None:
    assert privileges.has_virtualization(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: vmx\n") is usable


def test_tcg_is_never_kvm() -> None:
    assert privileges.open_kvm("tcg", "amd64") is None


def test_unusable_kvm_is_an_error_and_auto_emulates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privileges, "has_virtualization", lambda _: False)
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine="x86_64"))
    assert privileges.open_kvm("auto", "amd64") is None
    with pytest.raises(End, match="ACCEL=kvm is impossible here: the CPU flags show neither vmx nor svm") as caught:
        privileges.open_kvm("kvm", "amd64")
    assert caught.value.reason is Reason.PRIVILEGE


def test_kvm_runs_guests_of_its_own_architecture_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine="x86_64"))
    assert privileges.open_kvm("auto", "arm64") is None
    with pytest.raises(End, match="ACCEL=kvm is impossible here: the guest is for arm64, and this host is x86_64;"):
        privileges.open_kvm("kvm", "arm64")
