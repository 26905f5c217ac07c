"""Commands to QEMU through its machine protocol, QMP."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pytest_virtainers.errors import EngineError, VirtainerError

if TYPE_CHECKING:
    from pytest_virtainers.vm.machine import Machine

_END_SECONDS = 1.0  # until this side has heard of QEMU's end


class QMP:
    """Sends commands to the QEMU of one machine."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def execute(self, command: str, **arguments: Any) -> Any:
        """Send one command; return its result. Raises as `VM.qmp`."""
        __tracebackhide__ = True
        return self.execute_all((command, arguments))[0]

    def execute_all(self, *commands: tuple[str, dict[str, Any]]) -> list[Any]:
        """Send commands, each with its arguments, until one is refused; return their results. Raises as `VM.qmp`."""
        __tracebackhide__ = True
        machine, health = self._machine, self._machine.health
        health.check_qemu()
        texts = [json.dumps({"execute": command, "arguments": arguments}) for command, arguments in commands]
        try:
            code, output = machine.container.run(["qmp", *texts])
        except EngineError:
            health.check_qemu(_END_SECONDS)
            raise
        lines = output.decode(errors="replace").strip().splitlines()
        try:
            replies = [json.loads(line) for line in lines]
        except ValueError:
            replies = []
        if not replies or code not in {0, 1}:
            health.check_qemu(_END_SECONDS)
            raise VirtainerError(f"{machine.name}: QEMU did not answer {commands[0][0]}: {' '.join(lines)}")
        for reply, (command, _) in zip(replies, commands, strict=False):
            if "error" in reply:
                raise VirtainerError(f"{machine.name}: QEMU refuses {command}: {reply['error']['desc']}")
        return [reply["return"] for reply in replies]
