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
    """A folder to be in, below another one, and another home."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "config" / "virtainers").mkdir(parents=True)
    (tmp_path / "project" / "tests").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "project" / "tests")
    return tmp_path


def of_user(folder: Path, text: str) -> None:
    (folder / "config" / "virtainers" / "images.toml").write_text(text)


def test_the_distributions_that_are_promised() -> None:
    known = catalogue.catalogue()
    for name in (
        *("fedora-29", "fedora-30", "centos-7", "centos-8", "ubuntu-18.04"),
        *("debian", "ubuntu", "fedora", "centos-stream", "almalinux", "rocky", "opensuse", "alpine", "arch"),
    ):
        assert name in known
        if name not in {"alpine", "arch"}:
            assert known[f"{known[name].name}-arm64"].arch == "arm64"
    assert isinstance(known["debian"], Recipe)


def test_each_published_one_can_be_checked() -> None:
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


def test_users_add_their_own(project: Path) -> None:
    of_user(project, f'[ours]\nurl = "http://server/a.qcow2"\nsha256 = "{ZEROS}"\naliases = ["mine"]\nuser = "me"\n')
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


def test_a_project_without_images_has_those_above_it(project: Path) -> None:
    (project / "project" / "pyproject.toml").write_text('[tool.virtainers.images.a]\nurl = "https://s/a"\n')
    (project / "project" / "tests" / "pyproject.toml").write_text("[tool.other]\n")
    assert "a" in catalogue.catalogue()


def test_a_project_that_says_something_else(project: Path) -> None:
    (project / "project" / "pyproject.toml").write_text("[tool]\nvirtainers.images = 1\n")
    with pytest.raises(ImageError, match=r"pyproject.toml: tool.virtainers.images should be tables, .* not 1"):
        catalogue.catalogue()
    (project / "project" / "pyproject.toml").write_text("tool = 1\n")
    assert "debian" in catalogue.catalogue()


def test_another_digest_is_another_disk() -> None:
    one, two = (Published("a", "u", "https://s/a", Digest("sha256", each * 64)) for each in "ab")
    assert one.key != two.key
    assert one.place == f"guests/{one.key}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[a", "images.toml cannot be read: "),
        ("a = 1", "the image a: expected a table with a url"),
        ("[a]", "the image a: a url is needed"),
        (
            '["a/b"]\nurl = "https://s/a"',
            "the image a/b: a name has letters, digits, dots, dashes and underscores only",
        ),
        (
            '[a]\nurl = "https://s/a"\nuser = "-oProxyCommand=x"',
            "the image a: user='-oProxyCommand=x': a login name of",
        ),
        (
            '[a]\nurl = "https://s/a"\nsize = 1',
            "the image a: unknown: size; known are aliases, arch, checksums, fi",
        ),
        ("[a]\nurl = 1", "the image a: url should be text, not 1"),
        ('[a]\nurl = "https://s/a"\naliases = "b"', "the image a: aliases should be a list of names"),
        ('[a]\nurl = "http://s/a"', "the image a: image http://s/a: over http anybody may have changed it"),
        ('[a]\nurl = "https://s/a"\nsha256 = "12"', "after the # should be sha256= and 64 hex digits"),
        (
            f'[a]\nurl = "https://s/a"\nsha256 = "{ZEROS}"\nchecksums = "https://s/b"',
            "of sha256 and checksums, one is enough",
        ),
        (
            '[a]\nurl = "https://s/a"\narch = "arm64"\nfirmware = "bios"',
            "the image a: arm64 machines boot from uefi, not from bios",
        ),
        ('[a]\nurl = "https://s/a"\nchecksums = "http://s/b"', "checksums=http://s/b: only https:// can be believed"),
        (
            '[a]\nurl = "https://s/a"\nkeyring = "/k"',
            "the image a: keyring is of no use without checksums",
        ),
        (
            '[a]\nurl = "https://s/a"\nchecksums = "https://s/b"\nsignature = "https://s/c"',
            "the image a: signature is of no use without keyring",
        ),
        (
            '[a]\nurl = "https://s/a"\nchecksums = "https://s/b"\nkeyring = "k.gpg"',
            "the image a: keyring=k.gpg: a path from / or ~ is needed",
        ),
    ],
)
def test_what_is_wrong_is_told(project: Path, text: str, words: str) -> None:
    of_user(project, text)
    with pytest.raises(ImageError) as error:
        catalogue.catalogue()
    assert words in str(error.value)
    assert str(project / "config" / "virtainers" / "images.toml") in str(error.value)
