"""A clone from the request until its first command has returned, against its floor and against a boot, in turn.

    VIRTAINER_ENGINE=docker python -m benchmarks.clone [ROUNDS]

The floor: an empty container of the same image on the same network is started, and one SSH login and command are done
on a VM that is already up. Targets: clone at most 1.3 times its floor, a boot at least 20 times a clone; a snapshot
in place at most 1.5 s, its restore until the first command 2.0 s. Where the seconds of a clone go is printed, too.
"""

import os
import statistics
import sys
import time
from dataclasses import replace

from pytest_virtainers.durations import table
from pytest_virtainers.engine.container import Container, Plan
from pytest_virtainers.handle import ssh
from pytest_virtainers.handle.vm import VM
from pytest_virtainers.manager import Manager
from pytest_virtainers.progress import SILENT
from pytest_virtainers.settings import environment, resolve
from pytest_virtainers.spec import Spec, merge

_BOOTS = 3


def clone(manager: Manager, spec: Spec) -> float:
    """Launch and use one as a test does; give the seconds."""
    began = time.perf_counter()
    vm = manager.launch(spec)
    vm.run("true")
    taken = time.perf_counter() - began
    manager.discard(vm)
    return taken


def in_place(vm: VM) -> tuple[float, float]:
    """Keep a snapshot and go back to it; give the seconds of both, the second with a command."""
    began = time.perf_counter()
    snapshot = vm.snapshot()
    kept = time.perf_counter()
    vm.restore(snapshot)
    vm.run("true")
    return kept - began, time.perf_counter() - kept


def empty_container(manager: Manager, spec: Spec, number: int) -> float:
    """Start a container as a VM's is, whose program only waits; give the seconds until it ran."""
    places = [manager.guest(spec.image).place]
    like = manager.starter.plan(spec, f"virtainers-benchmark-{number}", places, {}, "")
    plan = Plan(name=like.name, kind="helper", image=like.image, entrypoint=("cat",), port=like.port)
    began = time.perf_counter()
    container = Container(manager.engine, plan, "benchmark")
    container.start()
    taken = time.perf_counter() - began
    container.close()
    return taken


def login(vm: VM) -> float:
    """Log in anew and run one command; give the seconds."""
    began = time.perf_counter()
    connection = ssh.log_in(vm._endpoint.dial(10), vm.user, vm.keys, 30)
    connection.execute("true", stdin=None, stdout=bytes, stderr=bytes, deadline=None, check=lambda: None)
    taken = time.perf_counter() - began
    connection.close()
    return taken


def main() -> None:
    """Measure in turn and print medians and their ratio."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    spec = merge(resolve([]).shape, {"template": True})
    with Manager(resolve([environment(os.environ)]), SILENT) as manager:
        print(f"{spec.image}, {spec.ram} MiB, {spec.cpus} CPU on {manager.engine}")
        reference, changing = manager.launch(spec), manager.launch(spec)
        clone(manager, spec)  # what only the first one pays
        clones, containers, logins, boots, places = [], [], [], [], []
        manager.durations.clear()
        for number in range(rounds):
            containers.append(empty_container(manager, spec, number))
            logins.append(login(reference))
            clones.append(clone(manager, spec))
            places.append(in_place(changing))  # after which a login would be slower: all has to be translated anew
            if number < _BOOTS:
                boots.append(clone(manager, replace(spec, template=False)))
        where = table([each for each in manager.durations if each.kind == "clone"])
    ours = statistics.median(clones)
    container, session = statistics.median(containers), statistics.median(logins)
    print(f"clones: {', '.join(f'{each:.2f}' for each in clones)} s")
    print(
        f"medians of {rounds}: clone {ours:.2f} s; floor {container:.2f} s (container) + {session:.2f} s (login and "
        f"command) = {container + session:.2f} s; ratio {ours / (container + session):.2f}"
    )
    boot = statistics.median(boots)
    print(f"boots: {', '.join(f'{each:.1f}' for each in boots)} s; ratio of a boot to a clone {boot / ours:.1f}")
    kept, restored = (statistics.median(each) for each in zip(*places, strict=True))
    print(f"snapshot in place {kept:.2f} s, restored until the first command {restored:.2f} s")
    print("\n".join(where))


if __name__ == "__main__":
    main()
