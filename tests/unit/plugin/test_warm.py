"""`--virtainer-warm` in real pytest runs, with a launcher that only records what it would create."""

import pytest

pytestmark = pytest.mark.usefixtures("recorder")

# A launcher that prints what it would create; the image `fails` does not boot.
CONFTEST = """
    import contextlib
    import pytest
    from pytest_virtainers.plugin import session
    from pytest_virtainers.errors import BootTimeout

    class Parts:
        vms = found = []

        def close(self): pass

    class FakeLauncher:
        durations, failed, damage = [], Parts(), Parts()

        def warm(self, spec, node_id):
            print(f"MAKE {spec.image} {spec.ram} {spec.cpus} {spec.prepare and spec.prepare.__name__} for {node_id}")
            if spec.image == "fails":
                raise BootTimeout("vm did not let us log in")

        is_ours = True

        def look_for_damage(self): return []

        def close(self): pass

    def launcher(config):
        config.stash[session._LAUNCHER_KEY] = FakeLauncher()
        return config.stash[session._LAUNCHER_KEY]

    session.launcher = launcher
"""


@pytest.fixture
def recorder(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(CONFTEST)


def warm(pytester: pytest.Pytester, suite: str, *options: str) -> pytest.RunResult:
    pytester.makepyfile(test_x=suite)
    return pytester.runpytest_subprocess("-s", "-p", "no:cacheprovider", "--virtainer-warm", *options)


def made(result: pytest.RunResult) -> list[str]:
    return [line.removeprefix("MAKE ") for line in result.outlines if line.startswith("MAKE ")]


SUITE = """
    import pytest

    def set_up(vm): raise AssertionError("RAN")

    @pytest.fixture(autouse=True)
    def other(): raise AssertionError("RAN")

    @pytest.fixture
    def web(vm): raise AssertionError("RAN")

    def test_first(vm): raise AssertionError("RAN")

    @pytest.mark.virtainer("web", ram="2G", scope="module", network="lab")
    def test_by_a_fixture(web): raise AssertionError("RAN")

    @pytest.mark.virtainer("one", ram="2G")
    @pytest.mark.virtainer("two", cpus=4, prepare=set_up)
    def test_several(vms): pass

    class TestSession:
        def test_it(self, session_vm): pass

    @pytest.mark.parametrize("number", range(9))
    def test_many(vm, number): pass

    def test_none(tmp_path): raise AssertionError("RAN")
"""


@pytest.mark.parametrize("workers", [(), ("-n", "2"), ("-n", "2", "--dist=loadfile")])
def test_each_shape_is_created_once_and_no_test_runs(pytester: pytest.Pytester, workers: tuple[str, ...]) -> None:
    result = warm(pytester, SUITE, *workers)
    assert result.ret == 0
    assert made(result) == [
        "debian-13 1024 1 None for test_x.py::test_first",
        "debian-13 2048 1 None for test_x.py::test_by_a_fixture",
        "debian-13 1024 4 set_up for test_x.py::test_several",
    ]
    assert "RAN" not in result.stdout.str()
    result.stdout.fnmatch_lines(
        [
            "virtainers: 1 of 3: debian-13, 1024 MiB, 1 CPU, disk 10240 MiB: ready in *",
            "virtainers: 3 of 3: debian-13, 1024 MiB, 4 CPU, disk 10240 MiB, prepare set_up: ready in *",
            "*no tests ran in*",
        ]
    )


def test_only_selected_tests_count(pytester: pytest.Pytester) -> None:
    assert made(warm(pytester, SUITE, "-k", "by_a_fixture")) == [
        "debian-13 2048 1 None for test_x.py::test_by_a_fixture"
    ]


def test_fixtures_of_each_folder_and_parameter_count(pytester: pytest.Pytester) -> None:
    for folder, ram in (("small", 512), ("large", 4096)):
        pytester.mkdir(folder).joinpath("conftest.py").write_text(
            "import pytest\n"
            "@pytest.fixture(scope='session')\n"
            f"def ram(): return {ram}\n"
            "@pytest.fixture(scope='session', params=[1, 2])\n"
            "def virtainer_defaults(request, ram): return dict(ram=ram, cpus=request.param)\n"
        )
        pytester.path.joinpath(folder, f"test_{folder}.py").write_text("def test_it(vm): raise AssertionError('RAN')")
    result = warm(pytester, "")
    assert result.ret == 0
    assert sorted(made(result)) == [
        "debian-13 4096 1 None for large/test_large.py::test_it[1]",
        "debian-13 4096 2 None for large/test_large.py::test_it[2]",
        "debian-13 512 1 None for small/test_small.py::test_it[1]",
        "debian-13 512 2 None for small/test_small.py::test_it[2]",
    ]


def test_a_prepare_of_a_conftest_counts(pytester: pytest.Pytester) -> None:
    suite = """
        import pytest

        @pytest.fixture(scope="session")
        def virtainer_prepare():
            def install(vm): pass
            return install

        def test_it(vm): pass
    """
    assert made(warm(pytester, suite)) == ["debian-13 1024 1 install for test_x.py::test_it"]


def test_skipped_tests_need_nothing(pytester: pytest.Pytester) -> None:
    suite = """
        import pytest

        @pytest.mark.skip
        def test_skipped(vm): pass

        @pytest.mark.skipif("True", reason="as text")
        def test_skipped_if(vm): pass
    """
    result = warm(pytester, suite)
    assert (result.ret, made(result)) == (0, [])
    result.stdout.fnmatch_lines(["virtainers: no test needs a VM"])


def test_failures_are_listed_with_their_tests(pytester: pytest.Pytester) -> None:
    suite = """
        import pytest

        @pytest.mark.virtainer(image="fails")
        @pytest.mark.parametrize("number", range(5))
        def test_bad(vm, number): pass

        @pytest.mark.virtainer(ram="2G")
        def test_good(vm): pass
    """
    result = warm(pytester, suite)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert len(made(result)) == 2
    result.stdout.fnmatch_lines(
        [
            "virtainers: 1 of 2: fails, 1024 MiB, 1 CPU, disk 10240 MiB: failed in *",
            "virtainers: 2 of 2: debian-13, 2048 MiB, *: ready in *",
            "*= virtainer: not created =*",
            "fails, 1024 MiB, 1 CPU, disk 10240 MiB, for test_x.py::test_bad[[]0], test_x.py::test_bad[[]1], "
            "test_x.py::test_bad[[]2] and 2 more:",
            "BootTimeout: vm did not let us log in",
        ]
    )


def test_a_test_with_unknown_needs_is_a_failure(pytester: pytest.Pytester) -> None:
    suite = """
        import pytest

        @pytest.fixture(scope="session")
        def virtainer_defaults(): return {"ram": "lots"}

        def test_it(vm): pass
    """
    result = warm(pytester, suite)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["test_x.py::test_it", "SpecError: the fixture virtainer_defaults: ram='lots': *"])


def test_vms_of_a_factory_are_unknown(pytester: pytest.Pytester) -> None:
    result = warm(pytester, "def test_a(vm_factory): pass\ndef test_b(vm_factory, vm): pass")
    assert result.ret == 0
    assert made(result) == ["debian-13 1024 1 None for test_x.py::test_b"]
    result.stdout.fnmatch_lines(["virtainers: 2 tests use vm_factory, whose arguments are known only when they run"])


def test_collection_errors_come_first(pytester: pytest.Pytester) -> None:
    result = warm(pytester, "def test_it(vm): pass\nimport nothing_of_this_name")
    assert (result.ret, made(result)) == (pytest.ExitCode.INTERRUPTED, [])


def test_collect_only_creates_nothing(pytester: pytest.Pytester) -> None:
    result = warm(pytester, SUITE, "--collect-only")
    assert (result.ret, made(result)) == (0, [])


@pytest.mark.parametrize(("missing", "ret"), [("error", 1), ("skip", 0)])
def test_a_missing_engine_is_reported(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, missing: str, ret: int
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:9")
    pytester.makeconftest("")
    result = warm(pytester, SUITE, f"--virtainer-missing={missing}", "--virtainer-engine=auto")
    assert result.ret == ret
    result.stdout.fnmatch_lines(["*no container engine answered (engine=auto). Tried:*"])
    assert "Traceback" not in result.stdout.str()
