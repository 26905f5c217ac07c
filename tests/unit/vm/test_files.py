"""File methods of a VM whose guest only reads its input."""

import io
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import pytest

from pytest_virtainers.errors import TransferError
from pytest_virtainers.ssh import client
from pytest_virtainers.support import progress
from tests.unit.vm.fake_container import Container, machine

MIB = 1024 * 1024


class Connection:
    """Reads the input of a command in a thread, and calls `check` in this one, as `ssh.Connection` does."""

    alive = True

    def execute(
        self,
        _command: str,
        *,
        stdin: IO[bytes] | None,
        stdout: Callable[[bytes], object],
        check: Callable[[], None],
        **_: object,
    ) -> int:
        if stdin is None:
            return 0

        def feed() -> None:
            while stdin.read(MIB):
                pass

        feeding = threading.Thread(target=feed)
        feeding.start()
        feeding.join()
        check()
        stdout(b"/guest/.virtainer.x\0/guest/source\0")
        return 0


def test_put_shows_progress_in_the_thread_that_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[str, threading.Thread]] = []
    vm = machine(Container())
    connection: Any = Connection()
    vm.machine.ssh.current = connection
    vm.machine.progress = progress.Progress(lambda text: shown.append((text, threading.current_thread())), live=True)
    monkeypatch.setattr(progress, "_QUIET_SECONDS", 0.0)
    monkeypatch.chdir(tmp_path)  # a short path, which leaves room on the line
    Path("source").write_bytes(bytes(3 * MIB))
    assert vm.put("source", "/guest/source") == "/guest/source"
    assert {thread for _, thread in shown} == {threading.current_thread()}
    assert any(text.endswith("3 MiB") for text, _ in shown)


def archive(*links: tuple[str, str]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, target in (("tree", ""), *links):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname, entry.mode = (tarfile.SYMTYPE if target else tarfile.DIRTYPE), target, 0o755
            tar.addfile(entry)
    return made.getvalue()


def test_get_shows_and_logs_what_it_skips(tmp_path: Path) -> None:
    shown: list[str] = []
    vm = machine(Container())
    sending: Any = SimpleNamespace(
        alive=True, execute=lambda _command, *, stdout, **_: stdout(archive(("tree/x", "/etc/\x1b[31m"))) or 0
    )
    vm.machine.ssh.current, vm.machine.progress = sending, progress.Progress(shown.append, live=False)
    assert vm.get("/srv/tree", tmp_path / "out") == tmp_path / "out"
    skipped = r"skipped 1 of 2: x -> /etc/\x1b[31m (link out of the tree); special=True (--special) keeps them"
    assert shown == [f"virtainers: vm: get /srv/tree: {skipped}\n"]
    assert [each.outcome for each in vm.log.entries] == [skipped]
    shown.clear()
    assert vm.get("/srv/tree", tmp_path / "all", special=True) == tmp_path / "all"
    assert (shown, vm.log.entries[-1].outcome) == ([], "done")


def test_standard_error_of_our_scripts_is_bounded() -> None:
    def flood(_command: str, *, stderr: Callable[[bytes], object], **_: object) -> int:
        for _number in range(100):
            stderr(b"x" * MIB)
        return 1

    vm = machine(Container())
    flooding: Any = SimpleNamespace(alive=True, execute=flood)
    vm.machine.ssh.current = flooding
    with pytest.raises(TransferError) as caught:
        vm.read_text("/etc/hostname")
    assert len(str(caught.value)) < MIB


def test_input_closed_by_its_owner_ends_silently() -> None:
    """The local tar's output is closed when the guest's tar ends early."""
    source = io.BytesIO(b"more")
    channel: Any = SimpleNamespace(settimeout=lambda _seconds: None, sendall=lambda _data: source.close())
    client.feed(channel, source)
