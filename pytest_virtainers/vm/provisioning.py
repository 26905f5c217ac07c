"""Do to a running guest what cloud-init does at a first boot: `files`, `packages` and `run_commands`.

`packages`, and `run_commands` together with them, are done by the guest's own cloud-init, so that the result is the
distribution's. Without packages, starting cloud-init would take most of the time. Then a shell does the same as its
modules `write_files`, `runcmd` and `scripts_user`, which are alike on all distributions. Either way a separate
service does it, as at a boot: its output is on the console, in the journal and in cloud-init's log, and its result is
where cloud-init leaves it.
"""

from __future__ import annotations

import base64
import json
import shlex
from typing import TYPE_CHECKING, Any

from pytest_virtainers.errors import BootError, Unclonable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_virtainers.config.spec import Spec
    from pytest_virtainers.vm.vm import VM

LACKS = 90
"""The exit code of a script in a guest that lacks what it needs."""
_CONFIG = "/etc/cloud/cloud.cfg.d/99_virtainers.cfg"
_MODULES = ("package_update_upgrade_install", "runcmd", "scripts_user")
_COMMANDS = "/var/lib/cloud/instance/scripts/runcmd"
_SCRIPT = "/run/virtainers-provision"
# As cloud-init's write_files does: missing parents are created, links followed, and existing files overwritten.
_WRITE = """
umask 022
put() {
    mkdir -p "${1%/*}/"
    base64 -d >"$1" && chmod "$2" "$1" && chown root:root "$1"
    ! command -v restorecon >/dev/null || restorecon "$1"
}
set -e
"""
_CHECK = f"""
[ -d /run/cloud-init ] && [ -d /var/lib/cloud/instance ] && command -v systemd-run >/dev/null || exit {LACKS}
"""
# The properties of cloud-final.service; processes that it starts in the background keep running.
_SERVE = f"""
rm -f /run/cloud-init/result.json
systemd-run --quiet --collect --unit=virtainers-provision --description='Packages and commands' \\
    -p KillMode=process -p TasksMax=infinity -p StandardOutput=journal+console -p StandardError=inherit \\
    -p SyslogIdentifier=cloud-init sh {_SCRIPT}
"""
_BY_CLOUD_INIT = f"""
rm -f "$0"
cloud-init modules --mode=final
rm -f {_CONFIG}
[ -e /run/cloud-init/result.json ] || echo '{{"v1": {{"errors": []}}}}' >/run/cloud-init/result.json
"""
_BY_SHELL = rf"""
rm -f "$0"
mkfifo -m 600 /run/virtainers-output
tee -a /var/log/cloud-init-output.log </run/virtainers-output &
exec >/run/virtainers-output 2>&1
rm -f /run/virtainers-output
{_COMMANDS} || python3 -I -S -c '
import json
error = "(\x27scripts_user\x27, RuntimeError(\x27Runparts: 1 failures (runcmd) in 1 attempted commands\x27))"
path = "/run/cloud-init/status.json"
with open(path) as file:
    status = json.load(file)
status["v1"]["modules-final"]["errors"].append(error)
with open(path, "w") as file:
    json.dump(status, file)
'
echo '{{"v1": {{"errors": []}}}}' >/run/cloud-init/result.json
"""
SCRIPTS = (_CHECK, _WRITE, _SERVE, _BY_CLOUD_INIT, _BY_SHELL, *_MODULES)
"""All scripts that run in a guest: with other scripts, a template may be different."""


def provision(vm: VM, spec: Spec) -> None:
    """Apply the files, packages and commands of `spec` to a guest, and wait until that is done.

    Raises:
        Unclonable: packages or commands need cloud-init and systemd-run, which the guest lacks; it is unchanged.
        BootError: it failed; the message is that of a boot.
    """
    __tracebackhide__ = True
    if not (spec.files or spec.packages or spec.run_commands):
        return
    # In one command: where the guest is emulated, each sudo takes about half a second.
    done = vm.run("sh -s", input=script(spec), sudo=True, check=False)
    if done.exit_code == LACKS:
        raise Unclonable("the guest has no cloud-init, or no systemd-run")
    if not done.ok:
        raise BootError(
            f"{vm.name}: files, packages and run_commands could not be brought into the guest: {done.stderr.strip()}"
        )
    if spec.packages or spec.run_commands:
        vm.machine.wait_until_provisioned()


def script(spec: Spec) -> str:
    """Return the shell script that writes files, and starts packages and commands as a service."""
    files = [_put(path, content, "644") for path, content in spec.files.items()]
    if spec.packages:
        private, service = [_put(_CONFIG, config(spec).encode(), "600")], _BY_CLOUD_INIT
    elif spec.run_commands:
        private, service = [_put(_COMMANDS, shell_script(spec.run_commands).encode(), "700")], _BY_SHELL
    else:
        return "".join([_WRITE, *files])
    private.append(_put(_SCRIPT, service.encode(), "600"))
    return "".join([_CHECK, _WRITE, *files, "umask 077\n", *private, _SERVE])


def _put(path: str, content: bytes, mode: str) -> str:
    return f"put {shlex.quote(path)} {mode} <<'EOF'\n{base64.encodebytes(content).decode()}EOF\n"


def shell_script(commands: Sequence[str | list[str]]) -> str:
    """Return the script that cloud-init makes of `runcmd`."""
    lines = [each if isinstance(each, str) else " ".join(map(_quote, each)) for each in commands]
    return "".join(f"{line}\n" for line in ["#!/bin/sh", *lines])


def config(spec: Spec) -> str:
    """Return the settings with which cloud-init's last stage does this, and no more."""
    facts: dict[str, Any] = {"cloud_final_modules": [[name, "always"] for name in _MODULES]}
    facts["packages"] = list(spec.packages)
    if spec.run_commands:
        facts["runcmd"] = list(spec.run_commands)
    return f"#cloud-config\n{json.dumps(facts)}\n"


def _quote(word: str) -> str:
    return "'" + word.replace("'", r"'\''") + "'"
