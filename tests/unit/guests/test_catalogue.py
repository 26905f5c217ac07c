from pathlib import Path
from urllib.parse import urlsplit

import pytest

from pytest_virtainers.errors import ImageError
from pytest_virtainers.guests import catalogue
from pytest_virtainers.guests.catalogue import Published, Recipe
from pytest_virtainers.guests.checksums import Source
from pytest_virtainers.guests.download import Digest

ZEROS = "0" * 64


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a folder in a new project, with a separate configuration folder."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "config" / "virtainers").mkdir(parents=True)
    (tmp_path / "project" / "tests").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "project" / "tests")
    return tmp_path


def write_images(folder: Path, text: str) -> None:
    (folder / "config" / "virtainers" / "images.toml").write_text(text)


def test_the_catalogue_has_the_documented_distributions() -> None:
    known = catalogue.catalogue()
    for name in (
        *("fedora-29", "fedora-30", "centos-7", "centos-8", "ubuntu-18.04"),
        *("debian", "ubuntu", "fedora", "centos-stream", "almalinux", "rocky", "opensuse", "alpine", "arch"),
    ):
        assert name in known
        if name not in {"alpine", "arch"}:
            assert known[f"{known[name].name}-arm64"].arch == "arm64"
    assert isinstance(known["debian"], Recipe)


def test_each_published_disk_has_a_digest() -> None:
    for entry in catalogue.catalogue().values():
        if isinstance(entry, Published):
            assert urlsplit(entry.url).scheme == "https"
            assert (entry.digest is None) != (entry.checksums is None), entry.name
            assert entry.user != catalogue.DEFAULT_USER
            other = {"amd64": ("aarch64", "arm64"), "arm64": ("x86_64", "amd64")}[entry.arch]
            assert not [word for word in other if word in entry.url], entry.name


def test_names_and_aliases_are_unique() -> None:
    text = Path(catalogue.__file__).with_suffix(".toml").read_text()
    aliases = [alias for line in text.splitlines() if line.startswith("aliases") for alias in line.split('"')[1::2]]
    names = {entry.name for entry in catalogue.catalogue().values()}
    assert len(set(aliases)) == len(aliases)
    assert not names & set(aliases)


def test_users_add_and_replace_images(project: Path) -> None:
    write_images(
        project, f'[ours]\nurl = "http://server/a.qcow2"\nsha256 = "{ZEROS}"\naliases = ["mine"]\nuser = "me"\n'
    )
    found = catalogue.catalogue()["mine"]
    assert found == Published("ours", "me", "http://server/a.qcow2", Digest("sha256", ZEROS))
    (project / "project" / "pyproject.toml").write_text(
        '[tool.virtainers.images.ours]\nurl = "https://server/b.raw.xz"\nchecksums = "https://server/SUMS"\n'
        'keyring = "/keys.gpg"\nsignature = "https://server/SUMS.gpg"\n'
        '[tool.virtainers.images."debian-13"]\nurl = "https://server/debian"\narch = "arm64"\n'
    )
    known = catalogue.catalogue()
    source = Source("https://server/SUMS", Path("/keys.gpg"), "https://server/SUMS.gpg")
    assert known["ours"] == Published("ours", "tester", "https://server/b.raw.xz", None, source)
    assert known["debian-13"] == Published("debian-13", "tester", "https://server/debian", arch="arm64")
    assert known["mine"] is not known["ours"]


def test_images_come_from_the_nearest_project_that_has_some(project: Path) -> None:
    (project / "project" / "pyproject.toml").write_text('[tool.virtainers.images.a]\nurl = "https://s/a"\n')
    (project / "project" / "tests" / "pyproject.toml").write_text("[tool.other]\n")
    assert "a" in catalogue.catalogue()


def test_a_malformed_table_of_images_is_refused(project: Path) -> None:
    (project / "project" / "pyproject.toml").write_text("[tool]\nvirtainers.images = 1\n")
    with pytest.raises(
        ImageError, match=r"pyproject.toml: tool.virtainers.images: expected a table for each image, not 1"
    ):
        catalogue.catalogue()
    (project / "project" / "pyproject.toml").write_text("tool = 1\n")
    assert "debian" in catalogue.catalogue()


def test_the_key_depends_on_the_digest() -> None:
    one, two = (Published("a", "u", "https://s/a", Digest("sha256", each * 64)) for each in "ab")
    assert one.key != two.key
    assert one.place == f"guests/{one.key}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[a", "images.toml: "),
        ("a = 1", "image a: expected a table with a url"),
        ("[a]", "image a: url is missing"),
        (
            '["a/b"]\nurl = "https://s/a"',
            "image a/b: a name may only contain letters, digits, dots, dashes and underscores",
        ),
        (
            '[a]\nurl = "https://s/a"\nuser = "-oProxyCommand=x"',
            "image a: user='-oProxyCommand=x': a login name of",
        ),
        (
            '[a]\nurl = "https://s/a"\nsize = 1',
            "image a: unknown key size; valid keys: aliases, arch, checksums, fi",
        ),
        ("[a]\nurl = 1", "image a: url must be a string, not 1"),
        ('[a]\nurl = "https://s/a"\naliases = "b"', "image a: aliases must be a list of names"),
        ('[a]\nurl = "http://s/a"', "image a: image http://s/a: http does not protect the download"),
        ('[a]\nurl = "https://s/a"\nsha256 = "12"', "expected sha256= and 64 hex digits"),
        (
            f'[a]\nurl = "https://s/a"\nsha256 = "{ZEROS}"\nchecksums = "https://s/b"',
            "use only one of sha256 and checksums",
        ),
        (
            '[a]\nurl = "https://s/a"\narch = "arm64"\nfirmware = "bios"',
            "image a: arm64 machines boot from uefi, not from bios",
        ),
        (
            '[a]\nurl = "https://s/a"\nchecksums = "http://s/b"',
            "checksums=http://s/b: the URL must start with https://",
        ),
        (
            '[a]\nurl = "https://s/a"\nkeyring = "/k"',
            "image a: keyring requires checksums",
        ),
        (
            '[a]\nurl = "https://s/a"\nchecksums = "https://s/b"\nsignature = "https://s/c"',
            "image a: signature requires keyring",
        ),
        (
            '[a]\nurl = "https://s/a"\nchecksums = "https://s/b"\nkeyring = "k.gpg"',
            "image a: keyring=k.gpg: the path must start with / or ~",
        ),
    ],
)
def test_an_invalid_entry_is_reported(project: Path, text: str, words: str) -> None:
    write_images(project, text)
    with pytest.raises(ImageError) as error:
        catalogue.catalogue()
    assert words in str(error.value)
    assert str(project / "config" / "virtainers" / "images.toml") in str(error.value)
