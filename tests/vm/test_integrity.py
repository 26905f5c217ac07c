"""Bits that flip in the store: found by `store verify`, and in the background by the run that starts VMs from it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_virtainers import StoreError
from pytest_virtainers.config.settings import Settings, resolve
from pytest_virtainers.config.spec import Spec, check, merge
from pytest_virtainers.engine.base import Container
from pytest_virtainers.engine.docker.engine import DockerEngine
from pytest_virtainers.engine.plan import Bind, Plan
from pytest_virtainers.launching.build import build_launcher
from pytest_virtainers.launching.launcher import Launcher
from pytest_virtainers.launching.templates import Template
from pytest_virtainers.store.places import MOUNT
from pytest_virtainers.store.volume import BUILD_CAPABILITIES
from pytest_virtainers.support.progress import SILENT
from tests.vm.shapes import SMALL

FLIP = """
import os, sys
path, at = sys.argv[1], int(sys.argv[2])
file = os.open(path, os.O_RDWR)
at %= os.fstat(file).st_size
os.pwrite(file, bytes([os.pread(file, 1, at)[0] ^ 4]), at)
"""
# A free page of the guest's RAM that no sample covers: neither the start of a clone nor the clone notices.
UNUSED = """
import os, sys
file = os.open(sys.argv[1], os.O_RDONLY)
hole = os.lseek(file, os.fstat(file).st_size // 2, os.SEEK_HOLE)
print(hole + 4096 + 17)
"""


def spec(name: str) -> Spec:
    return merge(resolve([]).shape, check({**SMALL, "name": name}, "here"))


class Store:
    """A separate store with a guest image and a template of it, copied from the default store.

    Attributes:
        folder: its folder.
        guest: the place of the guest image.
        template: the place of the template.
    """

    def __init__(self, helper: Container, folder: Path, template: Template, guest: str) -> None:
        self._helper = helper
        self.folder, self.template, self.guest = folder, template.place, guest

    def run(self, *command: str) -> str:
        code, output = self._helper.run([*command])
        assert code == 0, output
        return output.decode()

    def fill(self) -> None:
        places = f"{self.guest} {self.template}"
        self.run("sh", "-c", f"cd /store && rm -rf /mounted/* && cp -a --sparse=always --parents {places} /mounted")

    def flip(self, path: str, at: int) -> None:
        self.run("python3", "-c", FLIP, f"/mounted/{path}", str(at))

    def flip_unused(self) -> None:
        ram = f"{self.template}/ram"
        self.flip(ram, int(self.run("python3", "-c", UNUSED, f"/mounted/{ram}")))

    def virtainers(self, *words: str) -> tuple[int, str]:
        environment = {**os.environ, "VIRTAINER_STORE": str(self.folder)}
        command = [sys.executable, "-m", "pytest_virtainers.cli", *words]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
        return done.returncode, done.stdout

    def places(self) -> set[str]:
        return {*self.run("sh", "-c", "cd /mounted && ls -d */*").split()}


@pytest.fixture
def store(launcher: Launcher, engine: DockerEngine, settings: Settings, tmp_path: Path) -> Iterator[Store]:
    wanted = spec("origin")
    launcher.discard(launcher.launch(wanted))
    guest = launcher.guests.get(wanted.image)
    template = launcher.templates.find(wanted, guest)
    assert template is not None
    plan = Plan(
        name=f"virtainers-test-copy-{os.getpid()}",
        kind="helper",
        image=launcher.runtime_image.reference(),
        entrypoint=("cat",),
        binds=(Bind(MOUNT, settings.store),),
        folder=str(tmp_path),
        capabilities=BUILD_CAPABILITIES,
    )
    helper = engine.create(plan, "integrity")
    helper.start()
    try:
        found = Store(helper, tmp_path, template, guest.place)
        found.fill()
        yield found
        found.run("sh", "-c", "rm -rf /mounted/* /mounted/.scratch-*")
    finally:
        helper.close()


def test_store_verify_finds_each_flipped_bit(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert store.virtainers("store", "verify") == (0, f"{store.guest}: unchanged\n{store.template}: unchanged\n")
    inside = f"{store.template}/ram", f"{store.template}/local_image.qcow2", f"{store.template}/state"
    files = [*inside, f"{store.template}/seed.iso", f"{store.guest}/disk.qcow2"]
    modes = store.run("sh", "-c", f"stat -c %A /mounted/{store.template}/*").split()
    assert set(modes) == {"-r--r--r--", "-r--------"}, "the manifest has keys in it"
    for path in files:
        store.flip(path, 123_457)
    code, output = store.virtainers("store", "verify", "--json")
    assert code == 1
    rows = {f"{row['place']}/{row['file']}": row for row in json.loads(output)}
    assert {path for path, row in rows.items() if row["damaged"]} == {*files}
    for path in files[1:]:
        store.flip(path, 123_457)
    code, output = store.virtainers("store", "verify", store.template)
    ram = rows[files[0]]
    said = f"{store.template}: ram is damaged: its SHA-256 is {ram['sha256']}, and was {ram['was']}"
    assert (code, output.splitlines()[0]) == (1, said)
    assert output.endswith("\nTo remove damaged entries, which are created again: virtainers store verify --remove\n")
    assert store.virtainers("store", "verify", "--remove")[0] == 1, "it is in use by this process"
    assert store.places() == {store.guest, store.template}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))  # where it is not in use
    assert store.virtainers("store", "verify", "--remove")[0] == 0
    assert store.places() == {store.guest}
    assert store.virtainers("store", "verify") == (0, f"{store.guest}: unchanged\n")


def wait_for(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + 600
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.thorough
def test_a_damaged_template_is_replaced(store: Store, settings: Settings) -> None:
    wanted = spec("next")
    store.flip_unused()
    with build_launcher(replace(settings, store=str(store.folder)), SILENT) as launcher:
        vm = launcher.launch(wanted)
        with pytest.raises(StoreError) as caught:
            wait_for(lambda: launcher.discard(launcher.launch(wanted)))
        assert str(caught.value).startswith(f"{store.template}: ram is damaged: its SHA-256 is ")
        assert str(caught.value).endswith("the memory of the engine's host. It was removed and will be made again")
        assert vm.run("echo works").stdout == "works\n"
        former = vm.machine.keys
        vm = launcher.launch(wanted)
        assert vm.machine.keys != former
        assert store.template in store.places()
        assert launcher.damage.found == [str(caught.value)]


TESTS = """
    import time
    import pytest
    from pytest_virtainers.plugin import session

    pytestmark = pytest.mark.virtainer(ram="512M", disk="3G", cpus=2)

    def test_first(vm, pytestconfig):
        found = session.launcher(pytestconfig).damage._watch._found
        deadline = time.monotonic() + 600
        while found.empty():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        vm.run("true")

    def test_second(vm):
        vm.run("true")
"""


def test_a_run_from_a_damaged_file_fails_and_reports_it(store: Store, pytester: pytest.Pytester) -> None:
    pytester.makepyfile(TESTS)
    run = ("-p", "no:cacheprovider", f"--virtainer-store={store.folder}")
    store.flip_unused()
    result = pytester.runpytest_subprocess(*run, "-k", "first")
    result.assert_outcomes(passed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED, "no other failure"
    said = f"{store.template}: ram is damaged: *VMs of this run were started from it, and their results may"
    result.stdout.fnmatch_lines(["*= virtainer: damaged files in the store =*", f"{said}*"])
    assert store.places() == {store.guest}
    store.fill()
    store.flip(f"{store.guest}/disk.qcow2", 200_000_017)
    result = pytester.runpytest_subprocess(*run)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(
        [
            f"*StoreError: {store.guest}: disk.qcow2 is damaged: *",
            "*= virtainer: damaged files in the store =*",
            f"{store.guest}: disk.qcow2 is damaged: *make or download it again: virtainers store verify --remove",
        ]
    )
