"""How a container is created: its plan as arguments of the docker SDK."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from docker.types import Mount, Ulimit

from pytest_virtainers.engine import ownership
from pytest_virtainers.support.runtime_modules import protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_virtainers.engine.docker.engine import DockerEngine
    from pytest_virtainers.engine.plan import Plan


def create(engine: DockerEngine, plan: Plan, labels: Mapping[str, str], run_id: str) -> str:
    """Create a container with least privileges, and its volume if it has one; return the container's id."""
    mounts = [
        Mount(each.target, each.source, type="bind" if each.is_folder else "volume", read_only=not each.writable)
        for each in plan.binds
    ]
    if plan.volume is not None:
        # Before the container: Podman ignores the labels of a mount.
        engine.api.create_volume(plan.volume, labels=ownership.labels("disk", run_id))
        mounts.append(Mount(protocol.IMAGE_DIR, plan.volume, type="volume"))
    if plan.folder is not None:
        mounts.append(Mount(protocol.IMAGE_DIR, plan.folder, type="bind"))
    host_config = engine.api.create_host_config(
        auto_remove=plan.auto_remove,
        cap_drop=["ALL"],
        cap_add=list(plan.capabilities),
        security_opt=["no-new-privileges"],
        devices=[f"{device}:{device}:rwm" for device in plan.devices],
        sysctls=dict(plan.sysctls),
        dns_opt=list(plan.dns_options),
        mem_limit=f"{plan.memory_mib}m" if plan.memory_mib else None,
        pids_limit=1024,
        # Podman would ask for its own defaults, which some hosts refuse.
        ulimits=[Ulimit(name="nofile", soft=1024, hard=1024), Ulimit(name="nproc", soft=4096, hard=4096)],
        mounts=mounts,
        network_mode="none" if plan.offline else plan.port.network if plan.port else None,
        log_config=engine.log_config(),
    )
    networking: Any = None
    if plan.port is not None:
        own = {"IPAMConfig": {"IPv4Address": plan.port.address}} if plan.port.address else {}
        networking = {"EndpointsConfig": {plan.port.network: {"Aliases": list(plan.port.aliases), **own}}}
    created = engine.api.create_container(
        plan.image,
        entrypoint=list(plan.entrypoint) if plan.entrypoint else None,
        name=plan.name,
        environment=dict(plan.environment),
        labels=dict(labels),
        stop_timeout=plan.stop_seconds,
        stdin_open=plan.lease,  # without `detach`, the SDK also sets StdinOnce: the lease
        host_config=host_config,
        networking_config=networking,
    )
    return str(created["Id"])
