"""A clone from the request until its first command has returned, against its floor and against a boot, in turn.

The floor: an empty container of the same image on the same network is started, and one SSH login and command are done
on a VM that is already up. Where the seconds of a clone go is printed, too. Its CPU seconds are those of the whole
machine, so nothing else may run on it.
"""

import operator
import os
import time
from dataclasses import replace

from benchmarks.processor import busy_seconds
from benchmarks.rows import Row
from pytest_virtainers.config.settings import environment, resolve
from pytest_virtainers.config.spec import Spec, merge
from pytest_virtainers.engine.plan import Plan
from pytest_virtainers.launching.build import build_launcher
from pytest_virtainers.launching.launcher import Launcher
from pytest_virtainers.ssh import client
from pytest_virtainers.support.progress import SILENT
from pytest_virtainers.support.timings import table
from pytest_virtainers.vm.vm import VM

ROUNDS, BOOTS = 10, 3


def clone(launcher: Launcher, spec: Spec) -> float:
    """Launch and use one as a test does; return the seconds."""
    began = time.perf_counter()
    vm = launcher.launch(spec)
    vm.run("true")
    taken = time.perf_counter() - began
    launcher.discard(vm)
    return taken


def in_place(vm: VM) -> tuple[float, float]:
    """Return the seconds that a snapshot takes, and those of its restore with the first command after it."""
    began = time.perf_counter()
    snapshot = vm.snapshot()
    kept = time.perf_counter()
    vm.restore(snapshot)
    vm.run("true")
    return kept - began, time.perf_counter() - kept


def empty_container(launcher: Launcher, spec: Spec, number: int) -> float:
    """Start a container like a VM's, with a program that only waits; return the seconds until it ran."""
    places = [launcher.guests.get(spec.image).place]
    setting = launcher.networks.setting(spec.first_network)
    like = launcher.containers.planner.plan(spec, f"virtainers-benchmark-{number}", places, {}, "", setting=setting)
    plan = Plan(name=like.name, kind="helper", image=like.image, entrypoint=("cat",), port=like.port)
    began = time.perf_counter()
    container = launcher.engine.create(plan, "benchmark")
    container.start()
    taken = time.perf_counter() - began
    container.close()
    return taken


def login(vm: VM) -> float:
    """Log in and run one command; return the seconds."""
    began = time.perf_counter()
    connection = client.log_in(vm.machine.endpoint.dial(10), vm.user, vm.machine.keys, 30)
    connection.execute("true", stdin=None, stdout=bytes, stderr=bytes, deadline=None, check=lambda: None)
    taken = time.perf_counter() - began
    connection.close()
    return taken


def measure() -> list[Row]:
    """Measure in turn."""
    spec = merge(resolve([]).shape, {"template": True})
    with build_launcher(resolve([environment(os.environ)]), SILENT) as launcher:
        reference, changing = launcher.launch(spec), launcher.launch(spec)
        clone(launcher, spec)  # costs of the first one only
        clones, containers, logins, boots, places = [], [], [], [], []
        cpu: list[float] = []
        cpu_of_floor: list[float] = []
        launcher.durations.clear()
        for number in range(ROUNDS):
            with busy_seconds(cpu_of_floor):
                containers.append(empty_container(launcher, spec, number))
                logins.append(login(reference))
            with busy_seconds(cpu):
                clones.append(clone(launcher, spec))
            places.append(in_place(changing))  # a login after it would be slower, as all code is translated again
            if number < BOOTS:
                boots.append(clone(launcher, replace(spec, template=False)))
        print("\n".join(table([each for each in launcher.durations if each.kind == "clone"])))
    floor = tuple(map(operator.add, containers, logins))
    kept, restored = zip(*places, strict=True)
    ours, floors = "a clone with its first command", "an empty container, and a login and command on a VM that is up"
    return [
        Row(ours, tuple(clones), "s", floors, floor, 1.3),
        Row("CPU of that", tuple(cpu), "s", "CPU of its floor", tuple(cpu_of_floor)),
        Row(ours, tuple(clones), "s", "a boot", tuple(boots), 0.05),
        Row("a snapshot in place", kept, "s", "a clone", tuple(clones), 1.5),
        Row("its restore with the first command", restored, "s", "a clone", tuple(clones), 1.5),
    ]
