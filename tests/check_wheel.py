"""Install the built wheel in a clean environment and use it as a user would, without the work tree."""

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

# Run where the package is found first: in an empty folder (the installed one), or in the work tree.
PROGRAM = """
import pathlib, pytest_virtainers
from pytest_virtainers.engine import build_context
from pytest_virtainers.guests import catalogue
from pytest_virtainers.support.runtime_modules import protocol
here = pathlib.Path(pytest_virtainers.__file__).parent
contexts = here / "_contexts"
files = (contexts / "runtime/virtainer/protocol.py", here / "py.typed")
shared = pathlib.Path(protocol.__file__)
print(contexts == build_context.build_contexts() and all(each.exists() for each in files) and shared == files[0])
recipes = {each for each in catalogue.catalogue().values() if isinstance(each, catalogue.Recipe)}
print("runtime", build_context.digest("runtime"), *sorted(each.key for each in recipes))
"""
MARKER = "@pytest.mark.virtainer(name=None, *, image, ram"
RIGHT = "def test_the_plugin_is_there(request): assert request.config.pluginmanager.has_plugin('virtainers')\n"
WRONG = "import pytest\n@pytest.mark.virtainer(memory='1G')\ndef test_it(vm): pass\n"
MESSAGE = "test_wrong.py::test_it: @pytest.mark.virtainer: unknown argument 'memory'; did you mean 'ram'? allowed are"
_INTERRUPTED = 2  # pytest's exit code after an error of collection


def main() -> None:
    """Check the newest wheel in the folder given on the command line."""
    (wheel,) = Path(sys.argv[1]).glob("*.whl")
    # PYTHONPATH and its like could lead to the work tree.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    with tempfile.TemporaryDirectory(prefix="check-wheel-") as folder:
        venv.create(folder, with_pip=True)
        programs = Path(folder, "bin")

        def run(*command: str, cwd: Path = Path(folder), code: int = 0, shows: str = "") -> str:
            finished = subprocess.run(
                [programs / command[0], *command[1:]],
                cwd=cwd,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            if finished.returncode != code or shows not in finished.stdout:
                said = f"{finished.stdout}{finished.stderr}"
                expected = f"expected: {code}" + (f", and {shows!r} in its output" if shows else "")
                sys.exit(f"{' '.join(command)} ended with {finished.returncode} ({expected}):\n{said}")
            return finished.stdout

        run("pip", "install", "--quiet", str(wheel))
        complete, carried = run("python", "-c", PROGRAM).splitlines()
        packaged, expected = run("python", "-c", PROGRAM, cwd=Path(__file__).parent.parent).splitlines()
        if (complete, packaged, carried) != ("True", "False", expected):
            sys.exit(f"the wheel carries {carried} (complete: {complete}); the work tree has {expected}")
        Path(folder, "test_right.py").write_text(RIGHT)
        Path(folder, "test_wrong.py").write_text(WRONG)
        run("pytest", "--quiet", "test_right.py", shows="1 passed")
        run("pytest", "--markers", shows=MARKER)
        run("pytest", "--collect-only", "test_wrong.py", code=_INTERRUPTED, shows=MESSAGE)
        run("virtainers", "--help", shows="doctor")
    print(f"{wheel.name}: installs, loads as a plugin, checks its marker, carries {carried}")


if __name__ == "__main__":
    main()
