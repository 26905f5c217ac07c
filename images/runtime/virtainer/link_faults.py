"""The command `wire`: the faults on one network of this machine, from now on.

    docker exec CONTAINER wire MAC '{"drop": {"02:42:0a:01:02:03": 1000}, "rate_kbit": 512, "delay_ms": 20}'
    docker exec CONTAINER wire MAC '{}'

MAC is that of the container's interface on the network. The JSON has all faults; what it leaves out is
healed. `drop` drops frames from senders, in thousandths, before anything except a capture sees them; `rate_kbit`,
`delay_ms` and `jitter_ms` are for what this machine sends.
"""

from __future__ import annotations

import json
import math
import sys
from typing import Any, NamedTuple

from virtainer import interfaces
from virtainer.tools import ToolError, run

_USAGE = (
    """usage: wire MAC '{"drop": {SENDERS_MAC: 1..1000}, "rate_kbit": WHOLE|null, "delay_ms": NUMBER|null, """
    """"jitter_ms": NUMBER|null}'"""
)
_PRIORITY = -10  # before the rules of joined cards forward the frames
_MAX_KBIT, _MAX_MS = 100_000_000, 3_600_000
_QUEUE_MS = 400  # of frames in the queue of a slow sender; more are dropped
_MODULES = {"tbf": "sch_tbf", "netem": "sch_netem"}


class Invalid(Exception):
    """The faults are not valid; the text says why."""


class Refused(Exception):
    """The kernel cannot apply the faults; the text says why and what to do."""


class Faults(NamedTuple):
    """All faults of one network."""

    drop: dict[str, int]  # thousandths of the frames, by the sender's MAC
    rate_kbit: int | None
    delay_ms: float | None
    jitter_ms: float | None


def parse(text: str) -> Faults:
    """Parse the faults; raises Invalid naming what is wrong with them."""
    try:
        given = json.loads(text)
    except ValueError as error:
        raise Invalid(f"not JSON: {error}") from None
    if not isinstance(given, dict):
        raise Invalid(f"expected a JSON object, got {text}")
    if unknown := given.keys() - set(Faults._fields):
        raise Invalid(f"unknown: {', '.join(sorted(unknown))}; known are {', '.join(Faults._fields)}")
    drop = {} if given.get("drop") is None else given["drop"]
    if not isinstance(drop, dict):
        raise Invalid("drop: expected an object, MAC: thousandths")
    for mac, part in drop.items():
        if not interfaces.is_mac(mac) or not _is_whole(part, 1, 1000):
            raise Invalid(f"drop: expected a lower-case MAC and a whole number from 1 to 1000, got {mac}: {part}")
    rate = given.get("rate_kbit")
    if rate is not None and not _is_whole(rate, 1, _MAX_KBIT):
        raise Invalid(f"rate_kbit: expected a whole number from 1 to {_MAX_KBIT}, got {rate}")
    delay, jitter = (_milliseconds(name, given.get(name)) for name in ("delay_ms", "jitter_ms"))
    if jitter and (delay is None or jitter > delay):
        raise Invalid("jitter_ms: needs a delay_ms that is no less")
    return Faults(drop, rate, delay, jitter)


def _is_whole(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _milliseconds(name: str, value: Any) -> float | None:
    """Parse a time; `None` is the same as 0."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MAX_MS:  # NaN is refused
        raise Invalid(f"{name}: expected milliseconds from 0 to {_MAX_MS}, got {value}")
    return float(value) or None


def scheduler(faults: Faults) -> list[str]:
    """Return the words of the one `tc` scheduler that does all of it, so that it is replaced in one step."""
    if faults.delay_ms is not None:
        delay = [f"{round(faults.delay_ms * 1000)}us"]
        jitter = [f"{round(faults.jitter_ms * 1000)}us"] if faults.jitter_ms else []
        rate = ["rate", f"{faults.rate_kbit}kbit"] if faults.rate_kbit else []
        # Its queue is in packets: enough for a fast sender during the delay.
        return ["netem", "limit", "100000", "delay", *delay, *jitter, *rate]
    if faults.rate_kbit is not None:
        # The burst: two full frames, and what arrives in a tick of a slow kernel (10 ms).
        burst = max(4096, math.ceil(faults.rate_kbit * 1000 / 8 / 100))
        return ["tbf", "rate", f"{faults.rate_kbit}kbit", "burst", str(burst), "latency", f"{_QUEUE_MS}ms"]
    return []


def rules(mac: str, link: str, drop: dict[str, int]) -> str:
    """Return the input of `nft -f` with all rules that drop frames; they replace the previous ones."""
    table = f"virtainer-wire-{mac.replace(':', '')}"
    nothing = f"table netdev {table}\ndelete table netdev {table}\n"
    if not drop:
        return nothing
    lines = "".join(
        f"        ether saddr {sender} {'' if part == 1000 else f'numgen random mod 1000 < {part} '}drop\n"  # noqa: PLR2004
        for sender, part in sorted(drop.items())
    )
    return (
        f"{nothing}table netdev {table} {{\n    chain lost {{\n"
        f'        type filter hook ingress device "{link}" priority {_PRIORITY}; policy accept;\n'
        f"{lines}    }}\n}}\n"
    )


def apply(mac: str, faults: Faults) -> None:
    """Apply the faults. If it raises interfaces.Missing or Refused, nothing has changed."""
    link = interfaces.find(mac)
    lost = rules(mac, link, faults.drop)
    try:
        run("nft", "--check", "-f", "-", stdin=lost)  # nothing may fail after the scheduler was changed
    except ToolError as error:
        raise Refused(f"the host's kernel cannot lose frames: {error}") from None
    rule = scheduler(faults)
    if rule:
        try:
            run("tc", "qdisc", "replace", "dev", link, "root", *rule)
        except ToolError as error:
            raise Refused(_explain(rule[0], str(error))) from None
    elif _scheduled(link):
        run("tc", "qdisc", "delete", "dev", link, "root")
    run("nft", "-f", "-", stdin=lost)


def _scheduled(link: str) -> bool:
    """Return whether there is a scheduler of this command; without one, the kernel would refuse to remove it."""
    shown = json.loads(run("tc", "-json", "qdisc", "show", "dev", link, "root"))
    return any(each.get("kind") in _MODULES for each in shown)


def _explain(kind: str, refusal: str) -> str:
    if "kind is unknown" not in refusal and "No such file" not in refusal:
        return f"the host's kernel refuses it: {refusal}"
    use = "a delay" if kind == "netem" else "a rate"
    return (
        f"the host's kernel has no {_MODULES[kind]}, which {use} needs: load it on the engine's host (modprobe "
        f"{_MODULES[kind]}; some distributions have it in a package of extra kernel modules), or do without {use}"
    )


def main(arguments: list[str]) -> int:
    """Run the command: exit code 1 when the faults cannot be applied, 2 for wrong usage."""
    if len(arguments) != 2 or not interfaces.is_mac(arguments[0]):  # noqa: PLR2004
        print(_USAGE, file=sys.stderr)
        return 2
    mac, text = arguments
    try:
        faults = parse(text)
    except Invalid as error:
        print(f"wire: {error}", file=sys.stderr)
        return 2
    try:
        apply(mac, faults)
    except (interfaces.Missing, Refused, ToolError) as error:
        print(f"wire: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
