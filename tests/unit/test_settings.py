import pytest

from pytest_virtainers.errors import SpecError
from pytest_virtainers.settings import Source, environment, resolve


def source(called: str, **given: str) -> Source:
    return Source(lambda setting: f"{called} {setting.name}", lambda setting: given.get(setting.name))


def test_the_first_source_that_speaks_wins() -> None:
    settings = resolve([source("line", ram="3G"), source("environment", ram="2G", cpus="2"), source("ini", cpus="8")])
    assert (settings.shape["ram"], settings.shape["cpus"], settings.shape["image"]) == (3072, 2, "debian-13")


def test_the_environment_is_read_by_name_and_empty_is_silent() -> None:
    settings = resolve([environment({"VIRTAINER_BOOT_TIMEOUT": "30", "VIRTAINER_IMAGE": ""})])
    assert (settings.shape["boot_timeout"], settings.shape["image"]) == (30.0, "debian-13")


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
        ("internet", "maybe", "VIRTAINER_INTERNET=maybe: allowed are on and off"),
    ],
)
def test_a_wrong_value_names_its_source_and_what_is_allowed(name: str, value: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        resolve([environment({f"VIRTAINER_{name.upper()}": value})])
    assert str(caught.value) == message
