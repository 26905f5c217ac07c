"""The plugin in real pytest runs without an engine, as `DOCKER_HOST` leads nowhere."""

import pytest

import pytest_virtainers

REFUSED = "no container engine answered (engine=auto). Tried:"


@pytest.fixture(autouse=True)
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VIRTAINER_ENGINE", "VIRTAINER_STORE", "VIRTAINER_IMAGE", "VIRTAINER_MISSING"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:9")


def run(pytester: pytest.Pytester, source: str, *arguments: str) -> pytest.RunResult:
    pytester.makepyfile(source)
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", *arguments)


LOADED = {
    *(
        "pytest_virtainers",
        "pytest_virtainers.config",
        "pytest_virtainers.config.arguments",
        "pytest_virtainers.plugin",
    ),
    *(f"pytest_virtainers.plugin.{each}" for each in ("fixtures", "hooks", "options", "session", "time_limit")),
}
"""The limit of modules that a run without VMs loads; Python compiles them each time if it cannot write bytecode."""


def test_a_run_without_vms_loads_few_modules(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
        import sys

        before = {*sys.modules}

        def pytest_unconfigure(config):
            ours = [each for each in sys.modules if each.startswith("pytest_virtainers")]
            foreign = {"docker", "paramiko", "pycdlib", "tenacity", "yaml", "requests", "difflib"}
            print("loaded:", *ours)
            print("foreign:", *sorted({*sys.modules} & foreign - before))
        """
    )
    result = run(pytester, "def test_x(): pass", "-q")
    (loaded,) = [line.split()[1:] for line in result.stdout.lines if line.startswith("loaded:")]
    assert {*loaded} == LOADED
    result.stdout.fnmatch_lines(["foreign:"])
    assert result.ret == 0


def test_the_header_is_one_line_and_needs_no_engine(pytester: pytest.Pytester) -> None:
    result = run(pytester, "def test_x(): pass", "--virtainer-ram=2G", "--virtainer-engine=podman")
    result.stdout.fnmatch_lines(["virtainers: debian-13, 2048 MiB, 1 CPU, engine podman"])
    assert result.ret == 0


def test_help_shows_options_and_markers_shows_the_marker(pytester: pytest.Pytester) -> None:
    result = run(pytester, "", "--help")
    for line in ("*--virtainer-boot-timeout=BOOT_TIMEOUT*", "*--virtainer-missing=MISSING*", "*virtainer_ram*"):
        result.stdout.fnmatch_lines([line])
    run(pytester, "", "--markers").stdout.fnmatch_lines(["@pytest.mark.virtainer(name=None, *, image, ram,*"])


@pytest.mark.parametrize(
    ("line", "variable", "ini", "shown"),
    [
        ("--virtainer-ram=3G", "2G", "512", "3072"),
        (None, "2G", "512", "2048"),
        (None, None, "512", "512"),
        (None, None, None, "1024"),
    ],
)
def test_options_override_the_environment_which_overrides_the_ini_file(  # noqa: PLR0917
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    line: str | None,
    variable: str | None,
    ini: str | None,
    shown: str,
) -> None:
    if variable:
        monkeypatch.setenv("VIRTAINER_RAM", variable)
    if ini:
        pytester.makeini(f"[pytest]\nvirtainer_ram = {ini}")
    result = run(pytester, "def test_x(): pass", *([line] if line else []))
    result.stdout.fnmatch_lines([f"virtainers: debian-13, {shown} MiB,*"])


def test_an_invalid_option_is_a_usage_error(pytester: pytest.Pytester) -> None:
    result = run(pytester, "def test_x(): pass", "--virtainer-ram=lots")
    result.stderr.fnmatch_lines(
        ["ERROR: --virtainer-ram=lots: a size is a number of MiB, or text such as 512M, 2G or 2GiB"]
    )
    assert result.ret == pytest.ExitCode.USAGE_ERROR


def test_hold_is_refused_with_workers(pytester: pytest.Pytester) -> None:
    result = run(pytester, "def test_x(): pass", "--virtainer-hold", "-n", "2")
    result.stderr.fnmatch_lines(["ERROR: hold: workers of pytest-xdist have no terminal to press Enter at; *-n0"])
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    for options in (("-n0",), ("-p", "no:xdist")):
        assert run(pytester, "def test_x(): pass", "--virtainer-hold", *options).ret == 0


def test_an_invalid_ini_value_names_the_ini_key(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nvirtainer_scope = package")
    run(pytester, "def test_x(): pass").stderr.fnmatch_lines(
        ["ERROR: virtainer_scope in the ini file=package: allowed are function, class, module, session"]
    )


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["one process", "xdist"])
def test_invalid_markers_are_reported_before_any_test_runs(
    pytester: pytest.Pytester, workers: tuple[str, ...]
) -> None:
    result = run(
        pytester,
        """
        import pytest

        def test_first(): print("RAN")

        @pytest.mark.virtainer(memory="1G")
        def test_unknown(vm): pass

        @pytest.mark.virtainer(ram="lots")
        def test_size(vm): pass

        @pytest.mark.virtainer("a", "b")
        def test_two_names(vm): pass
        """,
        "-s",
        *workers,
    )
    marker = "@pytest.mark.virtainer"
    file = "test_invalid_markers_are_reported_before_any_test_runs.py"
    result.stdout.fnmatch_lines_random(
        [
            f"{file}::test_unknown: {marker}: unknown argument 'memory'; did you mean 'ram'? allowed are name, *",
            f"{file}::test_size: {marker}: ram='lots': a size is a number of MiB, or text such as *",
            f"{file}::test_two_names: {marker}: only the name may be given without its keyword, and once",
        ]
    )
    assert "RAN" not in result.stdout.str()
    result.assert_outcomes(errors=1)


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["one process", "xdist"])
def test_damage_in_the_store_fails_a_run_of_passing_tests(
    pytester: pytest.Pytester, workers: tuple[str, ...]
) -> None:
    pytester.makeconftest(
        """
        from pytest_virtainers.plugin import session

        def damage(config):
            worker = getattr(config, "workerinput", {"workerid": "main" if not config.option.numprocesses else ""})
            return ["guests/x: disk.qcow2 is damaged"] if worker["workerid"] in {"gw1", "main"} else []

        session.damage = damage
        """
    )
    result = run(pytester, "def test_a(): pass\ndef test_b(): pass", *workers)
    result.assert_outcomes(passed=2)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*= virtainer: damaged files in the store =*", "guests/x: disk.qcow2 is damaged"])
    assert result.stdout.str().count("is damaged") == 1


TWO_TESTS = "def test_a(vm): pass\ndef test_b(session_vm, vm_factory): pass"


@pytest.mark.parametrize("option", ["--collect-only", "--setup-plan"])
def test_collecting_and_planning_start_nothing(pytester: pytest.Pytester, option: str) -> None:
    result = run(pytester, TWO_TESTS, option)
    assert result.ret == 0
    assert "no container engine" not in result.stdout.str()


def test_without_an_engine_each_test_is_one_clear_error(pytester: pytest.Pytester) -> None:
    result = run(pytester, TWO_TESTS)
    result.assert_outcomes(errors=2)
    text = result.stdout.str()
    assert text.count(f"EngineNotFound: {REFUSED}") >= 2
    assert "  DOCKER_HOST, tcp://127.0.0.1:9: Connection refused" in text
    assert "urllib3" not in text, "no tracebacks of its causes"


@pytest.mark.parametrize("name", ["scope", "reset"])
def test_vm_factory_refuses_to_share(pytester: pytest.Pytester, name: str) -> None:
    result = run(pytester, f"def test_it(vm_factory): vm_factory('db', {name}='session')")
    result.assert_outcomes(failed=1)
    words = f"test_it: vm_factory: {name} says how tests share a VM; VMs of vm_factory end with their test"
    result.stdout.fnmatch_lines([f"E *SpecError: *{words}"])


def test_missing_skip_skips_tests_without_an_engine(pytester: pytest.Pytester) -> None:
    result = run(pytester, TWO_TESTS, "--virtainer-missing=skip", "-rs")
    result.assert_outcomes(skipped=2)
    result.stdout.fnmatch_lines([f"SKIPPED*{REFUSED}*"])


def test_an_invalid_default_from_a_conftest_names_the_fixture(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
        import pytest

        @pytest.fixture(scope="session")
        def virtainer_defaults(): return {"ram": "lots"}
        """
    )
    result = run(pytester, "def test_a(vm): pass")
    result.stdout.fnmatch_lines(["E*SpecError: the fixture virtainer_defaults: ram='lots': a size is a number*"])


@pytest.mark.parametrize("name", pytest_virtainers.__all__)
def test_each_public_name_exists(name: str) -> None:
    assert getattr(pytest_virtainers, name).__name__
