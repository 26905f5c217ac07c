"""Install the built wheel in a clean environment and use it as a stranger would, without the work tree."""

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

# Run where the package is found first: in an empty folder (the installed one), or in the work tree.
PROGRAM = """
import pathlib, pytest_virtainers
from pytest_virtainers import contexts, images
here = pathlib.Path(pytest_virtainers.__file__).parent
print(here / "images" == contexts.build_contexts() and (here / "py.typed").exists())
print("runtime", contexts.digest("runtime"), *sorted({entry.key for entry in images.catalogue().values()}))
"""
TEST = "def test_the_plugin_is_there(request): assert request.config.pluginmanager.has_plugin('virtainers')\n"


def main() -> None:
    """Check the newest wheel in the folder given on the command line."""
    (wheel,) = Path(sys.argv[1]).glob("*.whl")
    with tempfile.TemporaryDirectory(prefix="check-wheel-") as folder:
        venv.create(folder, with_pip=True)
        programs = Path(folder, "bin")

        def run(*command: str, cwd: Path = Path(folder)) -> str:
            finished = subprocess.run(
                [programs / command[0], *command[1:]], cwd=cwd, capture_output=True, text=True, check=False
            )
            if finished.returncode != 0:
                sys.exit(f"{' '.join(command)} failed:\n{finished.stdout}{finished.stderr}")
            return finished.stdout

        run("pip", "install", "--quiet", str(wheel))
        complete, carried = run("python", "-c", PROGRAM).splitlines()
        _, expected = run("python", "-c", PROGRAM, cwd=Path(__file__).parent.parent).splitlines()
        if (complete, carried) != ("True", expected):
            sys.exit(f"the wheel carries {carried} (complete: {complete}); the work tree has {expected}")
        Path(folder, "test_it.py").write_text(TEST)
        run("pytest", "--quiet", "test_it.py")
        run("virtainers", "--help")
    print(f"{wheel.name}: installs, loads as a plugin, carries {carried}")


if __name__ == "__main__":
    main()
