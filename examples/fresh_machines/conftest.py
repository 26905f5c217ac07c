"""Set a machine up once; every test starts from a clone of it."""

from collections.abc import Callable

import pytest

from pytest_virtainers import VM

COUNTER = """#!/bin/sh
# Counts its calls.
count=$(cat /var/lib/counter 2>/dev/null || echo 0)
echo $((count + 1)) | tee /var/lib/counter
"""


def install(vm: VM) -> None:
    """Install the program under test; this runs before the machine is saved."""
    vm.write_text("/usr/local/bin/counter", COUNTER, mode=0o755)
    vm.run("counter", sudo=True)


@pytest.fixture(scope="session")
def virtainer_prepare() -> Callable[[VM], None]:
    """Return the function that prepares machines."""
    return install
