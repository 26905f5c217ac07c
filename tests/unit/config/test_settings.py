import pytest

from pytest_virtainers.config.settings import Source, environment, resolve
from pytest_virtainers.errors import SpecError


def source(called: str, **given: str) -> Source:
    return Source(lambda setting: f"{called} {setting.name}", lambda setting: given.get(setting.name))


def test_the_first_source_with_a_value_wins() -> None:
    settings = resolve([source("line", ram="3G"), source("environment", ram="2G", cpus="2"), source("ini", cpus="8")])
    assert (settings.shape["ram"], settings.shape["cpus"], settings.shape["image"]) == (3072, 2, "debian-13")


def test_empty_variables_count_as_not_given() -> None:
    settings = resolve([environment({"VIRTAINER_BOOT_TIMEOUT": "30", "VIRTAINER_IMAGE": ""})])
    assert (settings.shape["boot_timeout"], settings.shape["image"]) == (30.0, "debian-13")


def test_failing_tests_leave_evidence_by_default_and_all_of_it_is_kept() -> None:
    usual = resolve([])
    assert (usual.keep, usual.artifacts, usual.retention) == ("failed", "virtainer-artifacts", None)
    assert not any((usual.keep_memory, usual.hold, usual.echo))
    said = {"KEEP": "always", "ARTIFACTS": "kept", "RETENTION": "3", "KEEP_MEMORY": "on", "HOLD": "on", "ECHO": "on"}
    wished = resolve([environment({f"VIRTAINER_{name}": value for name, value in said.items()})])
    assert (wished.keep, wished.artifacts, wished.retention) == ("always", "kept", 3)
    assert all((wished.keep_memory, wished.hold, wished.echo))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ram", "lots", "VIRTAINER_RAM=lots: a size is a number of MiB, or text such as 512M, 2G or 2GiB"),
        ("scope", "package", "VIRTAINER_SCOPE=package: allowed are function, class, module, session"),
        (
            "max_ram",
            "all",
            "VIRTAINER_MAX_RAM=all: a size is a number of MiB, or text such as 512M, 2G or 2GiB; "
            "or a share such as 80%",
        ),
        ("missing", "ignore", "VIRTAINER_MISSING=ignore: allowed are error, skip"),
        ("keep", "sometimes", "VIRTAINER_KEEP=sometimes: allowed are never, failed, always"),
        ("retention", "0", "VIRTAINER_RETENTION=0: a whole number from 1 on is needed; or all"),
        ("hold", "yes", "VIRTAINER_HOLD=yes: allowed are on and off"),
        ("internet", "maybe", "VIRTAINER_INTERNET=maybe: allowed are on and off"),
    ],
)
def test_a_wrong_value_names_its_source_and_what_is_allowed(name: str, value: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        resolve([environment({f"VIRTAINER_{name.upper()}": value})])
    assert str(caught.value) == message
