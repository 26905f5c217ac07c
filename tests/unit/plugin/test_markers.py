"""The precedence of several markers, however they were put on a test, and the checks at collection."""

from __future__ import annotations

import pytest

CONFTEST = """
import pytest
from pytest_virtainers.plugin.markers import arguments

@pytest.fixture
def spec(request):
    folded = {}
    for layer in arguments(request.node):
        folded |= layer
    return folded
"""


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeconftest(CONFTEST)
    return pytester


def passed(suite: pytest.Pytester, count: int, *options: str) -> None:
    result = suite.runpytest_inprocess("-p", "no:cacheprovider", *options)
    result.assert_outcomes(passed=count)


def test_a_parameter_set_is_inside_its_function(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        """
        import pytest

        small = pytest.mark.virtainer(image="debian-12", ram="512M")

        @pytest.mark.virtainer(image="debian-13", ram="1G")
        @pytest.mark.parametrize(
            ("image", "ram"), [("debian-13", 1024), pytest.param("debian-12", 512, marks=small)]
        )
        def test_it(spec, image, ram):
            assert (spec["image"], spec["ram"]) == (image, ram)

        @pytest.mark.parametrize("other", [1, 2])
        @pytest.mark.parametrize("ram", [pytest.param(512, marks=[small])])
        @pytest.mark.virtainer(ram="2G", cpus=2)
        def test_two(spec, ram, other):
            assert (spec["ram"], spec["cpus"]) == (ram, 2)
        """
    )
    passed(suite, 4)


def test_a_class_is_inside_its_base_classes(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        """
        import pytest
        import unittest

        @pytest.mark.virtainer(image="debian-13", ram="512M")
        class TestBase:
            image, cpus = "debian-13", None

            def test_it(self, spec):
                assert (spec["image"], spec["ram"], spec.get("cpus")) == (self.image, 512, self.cpus)

        @pytest.mark.virtainer(image="debian-12")
        class TestChild(TestBase):
            image = "debian-12"

        class TestGrandchild(TestChild):
            pytestmark = [pytest.mark.virtainer(image="debian-11", cpus=2)]
            image, cpus = "debian-11", 2

        class TestUnmarked(TestChild):
            pass

        @pytest.mark.virtainer(image="debian-13")
        class TestAgain(TestChild):
            image = "debian-13"
        """
    )
    passed(suite, 5)


def test_a_function_is_inside_its_class_and_that_inside_its_module(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        """
        import pytest

        pytestmark = pytest.mark.virtainer(image="debian-12", ram="1G", cpus=4)

        @pytest.mark.virtainer(ram="2G", cpus=3)
        class TestIt:
            @pytest.mark.virtainer(cpus=2)
            def test_it(self, spec):
                assert (spec["image"], spec["ram"], spec["cpus"]) == ("debian-12", 2048, 2)

        def test_without(spec):
            assert spec["cpus"] == 4

        @pytest.mark.virtainer(cpus=1)
        @pytest.mark.virtainer(cpus=2)
        def test_the_decorator_that_is_nearer_wins(spec):
            assert spec["cpus"] == 2
        """
    )
    passed(suite, 3)


def test_a_package_is_outside_of_its_modules(suite: pytest.Pytester) -> None:
    suite.mkpydir("package").joinpath("test_it.py").write_text(
        "def test_it(spec):\n    assert (spec['cpus'], spec['ram']) == (2, 512)\n"
    )
    suite.path.joinpath("package", "conftest.py").write_text(
        "import pytest\n"
        "def pytest_collection_modifyitems(items):\n"
        "    for item in items:\n"
        "        item.add_marker(pytest.mark.virtainer(ram='512M'))\n"
        "        item.parent.add_marker(pytest.mark.virtainer(ram='1G', cpus=2))\n"
    )
    passed(suite, 1)


def test_a_marker_that_a_hook_adds_is_outside_of_decorators_or_inside(suite: pytest.Pytester) -> None:
    """By default, `add_marker` appends the marker, so that a decorator is closer."""
    suite.makepyfile(
        """
        import pytest

        @pytest.mark.virtainer(cpus=2)
        def test_it(spec, request):
            request.node.add_marker(pytest.mark.virtainer(cpus=3, ram="512M"))
            from pytest_virtainers.plugin.markers import arguments
            assert [each.get("cpus") for each in arguments(request.node)] == [3, 2]
            request.node.add_marker(pytest.mark.virtainer(cpus=4), append=False)
            assert [each.get("cpus") for each in arguments(request.node)] == [3, 2, 4]
        """
    )
    passed(suite, 1)


def test_a_file_that_a_fixture_writes_need_not_be_there_at_collection(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        """
        from pathlib import Path
        import pytest

        @pytest.fixture
        def build():
            Path("package.deb").write_text("built")

        @pytest.mark.virtainer(files={"/srv/package.deb": Path("package.deb")})
        def test_it(build, spec):
            assert spec["files"] == {"/srv/package.deb": b"built"}

        @pytest.mark.skip
        @pytest.mark.virtainer(
            files={"/a": Path("nowhere")}, user_data=Path("nowhere"), authorized_keys=[Path("nowhere")]
        )
        def test_skipped(vm):
            pass
        """
    )
    result = suite.runpytest_inprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, skipped=1)


def test_a_file_that_is_missing_at_launch_is_named(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        """
        from pathlib import Path
        import pytest

        @pytest.mark.virtainer(files={"/a": Path("nowhere")})
        def test_it(spec):
            pass
        """
    )
    result = suite.runpytest_inprocess("-p", "no:cacheprovider")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*::test_it: @pytest.mark.virtainer: files=*: */nowhere cannot be read (No such *"])
