"""Faults of a network: their syntax, and the commands to the kernel."""

from __future__ import annotations

import json

import pytest
from virtainer import interfaces, link_faults
from virtainer.tools import ToolError

MAC, PEER = "02:42:0a:01:02:03", "02:42:0a:01:02:04"


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Record the programs that are run, and their input."""
    programs: list[tuple[str, str]] = []

    def run(*argv: str, stdin: str = "") -> str:
        programs.append((" ".join(argv), stdin))
        if "netem" in argv:
            raise ToolError("tc qdisc failed (2): Error: Specified qdisc kind is unknown.", 2)
        return json.dumps([{"kind": "tbf"}]) if "show" in argv else ""

    monkeypatch.setattr(link_faults, "run", run)
    monkeypatch.setattr(interfaces, "find", lambda mac: "eth1")
    return programs


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("nonsense", "not JSON"),
        ("[]", "expected a JSON object"),
        ('{"loss": 1}', "unknown: loss; known are drop, rate_kbit, delay_ms, jitter_ms"),
        ('{"drop": []}', "drop: expected an object"),
        ('{"drop": {"02:42:0A:01:02:04": 1}}', "lower-case MAC"),
        (f'{{"drop": {{"{PEER} drop": 1}}}}', "lower-case MAC"),
        (f'{{"drop": {{"{PEER}": 0}}}}', "from 1 to 1000"),
        (f'{{"drop": {{"{PEER}": 1001}}}}', "from 1 to 1000"),
        (f'{{"drop": {{"{PEER}": true}}}}', "from 1 to 1000"),
        ('{"rate_kbit": 0}', "rate_kbit"),
        ('{"rate_kbit": 1.5}', "rate_kbit"),
        ('{"delay_ms": -1}', "delay_ms"),
        ('{"delay_ms": NaN}', "delay_ms"),
        ('{"delay_ms": "1ms"}', "delay_ms"),
        ('{"jitter_ms": 1}', "jitter_ms: needs a delay_ms"),
        ('{"delay_ms": 1, "jitter_ms": 2}', "jitter_ms: needs a delay_ms"),
    ],
)
def test_invalid_faults_are_refused(
    text: str, complaint: str, capsys: pytest.CaptureFixture[str], ran: list[tuple[str, str]]
) -> None:
    assert link_faults.main([MAC, text]) == 2
    assert complaint in capsys.readouterr().err
    assert ran == []


@pytest.mark.parametrize("arguments", [[], [MAC], ["eth0", "{}"], [MAC.upper(), "{}"], [MAC, "{}", "{}"]])
def test_wrong_usage_is_reported(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert link_faults.main(arguments) == 2
    assert capsys.readouterr().err.startswith("usage: wire MAC")


def test_null_is_the_same_as_nothing() -> None:
    nothing = '{"drop": null, "rate_kbit": null, "delay_ms": null, "jitter_ms": null}'
    assert link_faults.parse(nothing) == link_faults.parse("{}") == link_faults.parse('{"delay_ms": 0}')


def test_one_scheduler_does_it_all() -> None:
    def words(**given: float) -> str:
        return " ".join(link_faults.scheduler(link_faults.parse(json.dumps(given))))

    assert words() == ""
    assert words(rate_kbit=512) == "tbf rate 512kbit burst 4096 latency 400ms"
    assert words(rate_kbit=1_000_000) == "tbf rate 1000000kbit burst 1250000 latency 400ms"
    assert words(delay_ms=20) == "netem limit 100000 delay 20000us"
    assert words(delay_ms=1.5, jitter_ms=0.5, rate_kbit=64) == "netem limit 100000 delay 1500us 500us rate 64kbit"


def test_frames_are_dropped_by_their_sender() -> None:
    rules = link_faults.rules(MAC, "eth1", {PEER: 1000, "02:42:0a:01:02:05": 250})
    assert f"ether saddr {PEER} drop\n" in rules
    assert "ether saddr 02:42:0a:01:02:05 numgen random mod 1000 < 250 drop\n" in rules
    assert 'hook ingress device "eth1" priority -10' in rules, "before a joined card forwards the frame"
    assert rules.index("delete table netdev virtainer-wire-02420a010203") < rules.index("chain")
    assert "chain" not in link_faults.rules(MAC, "eth1", {})


def test_all_faults_are_applied_and_healed(ran: list[tuple[str, str]]) -> None:
    assert link_faults.main([MAC, f'{{"drop": {{"{PEER}": 1000}}, "rate_kbit": 512}}']) == 0
    assert [program for program, _ in ran] == [
        "nft --check -f -",
        "tc qdisc replace dev eth1 root tbf rate 512kbit burst 4096 latency 400ms",
        "nft -f -",
    ]
    ran.clear()
    assert link_faults.main([MAC, "{}"]) == 0
    assert [program for program, _ in ran][1:] == [
        "tc -json qdisc show dev eth1 root",
        "tc qdisc delete dev eth1 root",
        "nft -f -",
    ]
    assert "drop" not in ran[-1][1]


def test_a_scheduler_that_the_kernel_lacks_changes_nothing(
    ran: list[tuple[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert link_faults.main([MAC, f'{{"drop": {{"{PEER}": 1000}}, "delay_ms": 20}}']) == 1
    assert capsys.readouterr().err == (
        "wire: the host's kernel has no sch_netem, which a delay needs: load it on the engine's host (modprobe "
        "sch_netem; some distributions have it in a package of extra kernel modules), or do without a delay\n"
    )
    assert "nft -f -" not in [program for program, _ in ran]
