"""Templates made from their plain template: what they take beyond the provisioning, and against a boot.

And what a shape with large files costs each of its clones.
"""

import os
import secrets
import time
from dataclasses import replace

from benchmarks.clone import clone
from benchmarks.rows import Row
from pytest_virtainers.config.settings import environment, resolve
from pytest_virtainers.config.spec import Spec, merge
from pytest_virtainers.launching.build import build_launcher
from pytest_virtainers.launching.launcher import Launcher
from pytest_virtainers.support.progress import SILENT

ROUNDS, BOOTS, MIB, LIMIT_SECONDS = 5, 2, 10, 4.0


def layer(launcher: Launcher, spec: Spec) -> tuple[float, float]:
    """Make a template; return the seconds of its provisioning, and those beyond."""
    began = time.perf_counter()
    launcher.warm(replace(spec, run_commands=(f"echo {secrets.token_hex(4)} >/srv/layer",)))
    taken = time.perf_counter() - began
    (record,) = [each for each in launcher.durations if each.kind == "layer"]
    launcher.durations.clear()
    return record.seconds["provision"], taken - record.seconds["provision"]


def measure() -> list[Row]:
    """Measure in turn."""
    spec = merge(resolve([]).shape, {"template": True})
    large = replace(spec, files={"/srv/large": os.urandom(MIB * 2**20)})
    layers, boots, clones, of_large = [], [], [], []
    with build_launcher(resolve([environment(os.environ)]), SILENT) as launcher:
        clone(launcher, spec)  # makes the plain template, if there is none
        launcher.warm(large)
        launcher.durations.clear()
        for number in range(ROUNDS):
            layers.append(layer(launcher, spec))
            if number < BOOTS:
                boots.append(clone(launcher, replace(spec, template=False)))
                launcher.durations.clear()
            clones.append(clone(launcher, spec))
            of_large.append(clone(launcher, large))
            launcher.durations.clear()
    provisioning, beyond = zip(*layers, strict=True)
    whole = tuple(sum(each) for each in layers)
    return [
        Row(
            "a layered template, beyond its provisioning", beyond, "s", f"{LIMIT_SECONDS:g} s", (LIMIT_SECONDS,), 1.0
        ),
        Row("a layered template that runs a command", whole, "s", "a boot", tuple(boots)),
        Row("the provisioning of that", provisioning, "s", "a clone", tuple(clones)),
        Row(f"a clone of a shape with {MIB} MiB of files", tuple(of_large), "s", "a clone", tuple(clones), 1.1),
    ]
