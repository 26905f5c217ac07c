"""Files for contributors agree with `pyproject.toml`, `tox.ini` and each other."""

import configparser
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.check_wording import WORDS, added_lines, findings

ROOT = Path(__file__).parents[2]
CI = ".github/workflows/ci.yml"
RELEASE = ".github/workflows/release.yml"
THOROUGH = ".github/workflows/thorough.yml"
YAML_FILES = [".pre-commit-config.yaml", *(str(path.relative_to(ROOT)) for path in ROOT.glob(".github/**/*.yml"))]


def load(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


def tox() -> configparser.ConfigParser:
    parsed = configparser.ConfigParser(interpolation=None)
    parsed.read(ROOT / "tox.ini")
    return parsed


@pytest.mark.parametrize("name", YAML_FILES)
def test_yaml_files_are_mappings(name: str) -> None:
    assert isinstance(load(name), dict)


def test_hooks_use_the_versions_of_tox() -> None:
    (local,) = load(".pre-commit-config.yaml")["repos"]
    pins = {pin for hook in local["hooks"] for pin in hook.get("additional_dependencies", ())}
    assert pins == set(tox()["testenv:lint"]["deps"].split())


def test_ci_runs_each_environment_that_dev_test_runs() -> None:
    jobs = load(CI)["jobs"]
    unit = {
        name for each in jobs["unit"]["strategy"]["matrix"]["include"] for name in each["environments"].split(",")
    }
    vm = {f"vm-{engine}{part}" for engine in jobs["vm"]["strategy"]["matrix"]["engine"] for part in ("", "-alone")}
    expected = {name for group in tox()["tox"]["env_list"].split(", ") for name in _expand(group)}
    assert unit | vm == expected


def _expand(name: str) -> list[str]:
    """Expand one `{a,b}` as tox does."""
    before, choices, after = re.fullmatch(r"([^{]*)(?:\{(.*)\})?(.*)", name).groups()  # type: ignore[union-attr]
    return [f"{before}{choice}{after}" for choice in (choices or "").split(",")]


def test_ci_has_each_python_of_the_classifiers() -> None:
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    supported = {each.rpartition(" ")[2] for each in classifiers if re.search(r":: 3\.\d+$", each)}
    assert {each["python"] for each in load(CI)["jobs"]["unit"]["strategy"]["matrix"]["include"]} == supported


def test_a_part_for_each_day_is_all_that_ci_leaves_out() -> None:
    commands = " ".join(step.get("run", "") for step in load(THOROUGH)["jobs"]["part"]["steps"])
    assert './dev thorough "$(date -u +%u)/7"' in commands
    assert load(THOROUGH)[True]["schedule"] == [{"cron": "0 2 * * *"}], "each day (YAML reads `on` as true)"


@pytest.mark.parametrize("name", [CI, RELEASE, THOROUGH])
def test_workflows_pin_actions_and_may_only_read(name: str) -> None:
    workflow = load(name)
    assert workflow["permissions"] in ({}, {"contents": "read"})
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"]
        for step in job["steps"]:
            assert re.fullmatch(r"[\w./-]+@v\d+\.\d+\.\d+", step.get("uses", "none@v0.0.0"))
            assert "${{" not in step.get("run", ""), "values reach a shell through `env`, quoted"


def test_only_the_publishing_job_gets_a_token() -> None:
    jobs = load(RELEASE)["jobs"]
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert jobs["publish"]["environment"] == "release"
    assert [name for name, job in jobs.items() if "id-token" in job["permissions"]] == ["publish"]
    assert not any("run" in step for step in jobs["publish"]["steps"])


def test_each_decision_is_in_the_index_and_short() -> None:
    folder = ROOT / "docs/decisions"
    index = (folder / "README.md").read_text()
    pages = sorted(folder.glob("[0-9]*.md"))
    assert [page.name for page in pages] == re.findall(r"\]\((\d{4}-[\w-]+\.md)\)", index)
    for page in pages:
        text = page.read_text()
        assert re.findall(r"^## (.*)", text, re.MULTILINE) == ["Context", "Decision", "Consequences", "Alternatives"]
        assert len(text.splitlines()) <= 40


@pytest.mark.parametrize(
    "page", ["CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md", *ROOT.glob("docs/decisions/*")]
)
def test_links_to_files_lead_somewhere(page: str | Path) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
        assert (path.parent / target).exists(), f"{path.name} links to {target}"


@pytest.mark.parametrize("word", WORDS)
def test_wording_reports_a_word_with_its_line(word: str) -> None:
    (found,) = findings([("page.md", 3, f"It {word.capitalize()}, or so.")])
    assert found == f'page.md:3: "{word.capitalize()}": {WORDS[word]}'


@pytest.mark.parametrize("word", WORDS)
def test_wording_skips_code_and_other_files(word: str) -> None:
    assert not [
        *findings([("page.md", 1, f"the user `{word}`"), ("disk.bin", 1, word), ("page.md", 2, f"un{word}s")])
    ]


def test_wording_reads_only_what_a_diff_adds() -> None:
    diff = "--- a/x.md\n+++ b/x.md\n@@ -4,2 +7,2 @@ title\n-old\n-older\n+new\n+newer\n@@ -9 +12 @@\n+last"
    assert [*added_lines(diff)] == [("x.md", 7, "new"), ("x.md", 8, "newer"), ("x.md", 12, "last")]


def test_unit_tests_mirror_the_packages() -> None:
    """Each file in a folder of `tests/unit` is named after a module; those at the top have other subjects, too."""
    packages = {"runtime": ROOT / "images/runtime/virtainer"}
    unit = ROOT / "tests/unit"
    for path in unit.glob("*/**/test_*.py"):
        folder = path.parent.relative_to(unit)
        package = packages.get(str(folder), ROOT / "pytest_virtainers" / folder)
        assert (package / path.name.removeprefix("test_")).exists(), f"{path} mirrors no module"


def test_no_test_file_imports_another() -> None:
    """Helpers that several files need are in other modules."""
    importing = re.compile(r"^\s*(?:from|import) [\w.]*\btest_\w+", re.MULTILINE)
    for path in (ROOT / "tests").rglob("*.py"):
        assert not importing.search(path.read_text()), path
