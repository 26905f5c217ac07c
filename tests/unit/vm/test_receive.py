"""Trees from hostile guests: nothing outside of the destination is ever created, changed or read."""

import contextlib
import io
import os
import resource
import shutil
import socket
import stat
import subprocess
import tarfile
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_virtainers.errors import TransferError
from pytest_virtainers.vm import install, transfer

MIB = 1024 * 1024
TIB = 1024 * 1024 * MIB


def member(
    name: str, content: bytes = b"evil", *, kind: bytes = tarfile.REGTYPE, to: str = "", mode: int = 0o644
) -> tuple[tarfile.TarInfo, bytes]:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname, entry.mode, entry.mtime = kind, to, mode, 1_700_000_000
    entry.devmajor = entry.devminor = 1
    entry.size = len(content) if kind == tarfile.REGTYPE else 0
    return entry, content


def folder(name: str, mode: int = 0o755) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, kind=tarfile.DIRTYPE, mode=mode)


def link(name: str, to: str) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, kind=tarfile.SYMTYPE, to=to)


def hard_link(name: str, to: str) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, kind=tarfile.LNKTYPE, to=to)


def stream(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for entry, content in members:
            tar.addfile(entry, io.BytesIO(content))
    return archive.getvalue()


def get(
    sent: bytes, dest: Path | str, source: str = "/srv/tree", *, special: bool = False, piece: int = 65536
) -> transfer.Received:
    """Copy from a guest that sends these bytes for any request."""

    def shell(
        script: list[str], *, stdin: IO[bytes] | None, stdout: Callable[[bytes], object], timeout: float | None
    ) -> tuple[int, str]:
        for at in range(0, len(sent), piece):
            stdout(sent[at : at + piece])
        return 0, ""

    return transfer.get(shell, source, dest, 10, special=special)


def facts(root: Path) -> dict[str, object]:
    """Return everything below a folder, without following links."""
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        state = path.lstat()
        content: object = None
        if path.is_symlink():
            content = path.readlink()
        elif path.is_file():
            content = path.read_bytes()
        times = None if path.is_dir() else state.st_mtime_ns
        found[str(path.relative_to(root))] = (stat.S_IFMT(state.st_mode), stat.S_IMODE(state.st_mode), times, content)
    return found


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """Create what a guest would attack: a file, and a folder with a file; compare them at the end."""
    root = tmp_path / "outside"
    (root / "folder").mkdir(parents=True)
    for path in (root / "victim", root / "folder" / "victim"):
        path.write_text("untouched")
        path.chmod(0o600)
    before = facts(root)
    yield root
    assert facts(root) == before
    assert {each.name for each in tmp_path.iterdir()} <= {"outside", "out"}, "nothing next to the destination"


UP = "../outside"  # from the destination
ESCAPES = {
    "dot-dot": [folder("tree"), member(f"tree/../{UP}/victim")],
    "dot-dot at the front": [member("../outside/victim")],
    "absolute": [folder("tree"), member("{outside}/victim")],
    "another name": [folder("tree"), member("treehouse")],
    "no name": [member("")],
    "link, then a file of its name": [folder("tree"), link("tree/x", "{outside}/victim"), member("tree/x")],
    "relative link, then a file": [folder("tree"), link("tree/x", f"../{UP}/victim"), member("tree/x")],
    "file, then a link, then a file": [
        *(folder("tree"), member("tree/x"), link("tree/x", "{outside}/victim"), member("tree/x", mode=0o4777))
    ],
    "link to a folder, then a file below it": [
        *(folder("tree"), link("tree/x", "{outside}/folder"), member("tree/x/victim"))
    ],
    "link to a folder, then that folder": [
        *(folder("tree"), link("tree/x", "{outside}/folder"), folder("tree/x", 0o777), member("tree/x/victim"))
    ],
    "the tree is a link": [link("tree", "{outside}/folder"), member("tree/victim")],
    "a folder becomes a link": [folder("tree"), folder("tree/x"), link("tree/x", "{outside}/folder")],
    "links of links": [
        *(folder("tree"), folder("tree/a"), link("tree/a/up", ".."), link("tree/out", "a/up/../../outside/folder")),
        *(member("tree/out/victim"),),
    ],
    "hard link to outside": [folder("tree"), hard_link("tree/x", "{outside}/victim"), member("tree/x")],
    "hard link by dot-dot": [folder("tree"), hard_link("tree/x", f"tree/../{UP}/victim")],
    "hard link by another name": [folder("tree"), hard_link("tree/x", "outside/victim")],
    "hard link to a link": [
        *(
            folder("tree"),
            link("tree/x", "{outside}/victim"),
            hard_link("tree/y", "tree/x"),
            member("tree/y", mode=0o777),
        )
    ],
    "hard link through a link": [
        *(folder("tree"), link("tree/x", "{outside}/folder"), hard_link("tree/y", "tree/x/victim"), member("tree/y"))
    ],
    "link with an empty target": [folder("tree"), link("tree/x", "")],
    "zero byte": [folder("tree"), member("tree/x\0/../../outside/victim")],
    "file, then something below it": [folder("tree"), member("tree/x"), member("tree/x/y")],
    "twice the folder itself": [folder("tree"), folder("tree/."), folder("tree/./."), member("tree/./x")],
    "device": [folder("tree"), member("tree/x", kind=tarfile.BLKTYPE), member("tree/x")],
    "long name": [folder("tree"), member("tree/" + "x" * 300)],
    "long path": [folder("tree"), member("tree/" + "y/" * 3000 + "x")],
    "very long path": [folder("tree"), member("tree/" + "y/" * 500_000 + "x")],
    "deep path": [folder("tree"), member("tree/" + "y/" * 300 + "x")],
}


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("name", ESCAPES)
def test_nothing_leaves_the_destination(name: str, special: bool, outside: Path, tmp_path: Path) -> None:
    sent = stream(
        *(
            member(
                entry.name.replace("{outside}", str(outside)),
                content,
                kind=entry.type,
                to=entry.linkname.replace("{outside}", str(outside)),
                mode=entry.mode,
            )
            for entry, content in ESCAPES[name]
        )
    )
    dest = tmp_path / "out"
    for _ in range(2):
        with contextlib.suppress(TransferError):
            get(sent, dest, special=special)
        assert not list(tmp_path.rglob(".virtainer.*"))
    if not special and dest.exists():
        links = [each for each in dest.rglob("*") if each.is_symlink()]
        assert all(each.resolve().is_relative_to(dest.resolve()) for each in links), "no link leads out"


@pytest.mark.parametrize("planted", ["{outside}/victim", "{outside}/folder", "nowhere"])
@pytest.mark.parametrize(
    "second",
    [
        [folder("tree"), member("tree/x", mode=0o4777)],
        [folder("tree"), folder("tree/x", 0o777), member("tree/x/victim")],
        [folder("tree"), folder("tree/x", 0o777), folder("tree/x/y"), member("tree/x/y/victim")],
    ],
)
def test_an_existing_link_is_replaced_and_not_followed(
    second: list[tuple[tarfile.TarInfo, bytes]], planted: str, outside: Path, tmp_path: Path
) -> None:
    dest = tmp_path / "out"
    get(stream(folder("tree"), link("tree/x", planted.format(outside=outside))), dest, special=True)
    assert (dest / "x").is_symlink()
    get(stream(*second), dest)  # into it, as out/tree
    (dest / "tree" / "x").rename(dest / "tree" / "y")
    (dest / "tree" / "x").symlink_to(planted.format(outside=outside))
    received = get(stream(*second), dest)
    assert received.path == dest / "tree"
    found = dest / "tree" / "x"
    assert not found.is_symlink()
    assert found.is_dir() == (second[1][0].type == tarfile.DIRTYPE)


@pytest.mark.parametrize("sent", [[member("tree")], [folder("tree"), member("tree/victim")]])
@pytest.mark.parametrize("target", ["victim", "nowhere"])
def test_a_destination_that_is_a_link_is_replaced(
    sent: list[tuple[tarfile.TarInfo, bytes]], target: str, outside: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").symlink_to(outside / target)
    get(stream(*sent), tmp_path / "out")
    assert not (tmp_path / "out").is_symlink()
    assert not (outside / "nowhere").exists()


def test_a_destination_that_is_a_link_to_a_folder_is_refused_unless_it_ends_with_a_slash(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "out").symlink_to("folder")
    words = f"out is a symbolic link to a folder, .*Name the folder itself \\({tmp_path}/folder\\), or end it with /"
    with pytest.raises(TransferError, match=words):
        get(stream(member("tree")), tmp_path / "out")
    assert not list((tmp_path / "folder").iterdir())
    assert get(stream(member("tree")), f"{tmp_path}/out/").path == tmp_path / "out" / "tree"
    assert (tmp_path / "folder" / "tree").read_text() == "evil"


def test_folders_that_lead_to_the_destination_are_the_users(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "home").symlink_to("disk")
    get(stream(member("tree")), tmp_path / "home" / "out")
    assert (tmp_path / "disk" / "out").read_text() == "evil"


SPECIAL = [
    folder("tree", 0o2775),
    member("tree/program", mode=0o6755),
    folder("tree/shared", 0o1777),
    member("tree/fifo", kind=tarfile.FIFOTYPE, mode=0o600),
    member("tree/disk", kind=tarfile.BLKTYPE, mode=0o660),
    member("tree/terminal", kind=tarfile.CHRTYPE, mode=0o620),
    link("tree/passwd", "/etc/passwd"),
    link("tree/\x1b[31m", "../\x1b]0;x\x07"),
]


def test_special_files_are_skipped_and_reported_and_setuid_bits_dropped(tmp_path: Path) -> None:
    received = get(stream(*SPECIAL), tmp_path / "out")
    assert {each.name: each.lstat().st_mode & 0o7777 for each in received.path.iterdir()} == {
        "program": 0o755,
        "shared": 0o1777,
    }
    assert received.path.stat().st_mode & 0o7777 == 0o775
    assert received.skipped == (
        r"skipped 5 of 8: fifo (FIFO), disk (block device), terminal (character device), "
        r"passwd -> /etc/passwd (link out of the tree), \x1b[31m -> ../\x1b]0;x\x07 (link out of the tree); "
        "special=True (--special) keeps them"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can create devices")
def test_an_option_keeps_special_files_links_and_setuid_bits(tmp_path: Path) -> None:
    received = get(stream(*SPECIAL), tmp_path / "out", special=True)
    modes = {each.name: each.lstat().st_mode for each in received.path.iterdir()}
    assert received.skipped == ""
    assert stat.S_ISFIFO(modes["fifo"])
    assert stat.S_ISBLK(modes["disk"])
    assert stat.S_ISCHR(modes["terminal"])
    assert (received.path / "terminal").stat().st_rdev == os.makedev(1, 1)
    assert modes["program"] & 0o7777 == 0o6755
    assert (received.path / "passwd").readlink() == Path("/etc/passwd")
    assert received.path.stat().st_mode & 0o7777 == 0o2775


def test_devices_need_root(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            os.chdir(tmp_path)  # another user has no access by its path
            if os.geteuid() == 0:
                os.seteuid(65534)
            received = get(stream(*SPECIAL), "out", special=True)
            only_root = "skipped 2 of 8: disk (block device, which only root can create), terminal (character device"
            os._exit(0 if received.skipped.startswith(only_root) and Path("out/fifo").is_fifo() else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_report_has_a_limited_length(tmp_path: Path) -> None:
    links = [link(f"tree/{number}", "/" + "x" * 3000) for number in range(500)]
    received = get(stream(folder("tree"), *links), tmp_path / "out")
    assert received.skipped.startswith("skipped 500 of 501: 0 -> /xxx")
    assert received.skipped.endswith(" and 495 more; special=True (--special) keeps them")
    assert len(received.skipped) < 2000


@pytest.mark.parametrize(("kind", "words"), [(tarfile.FIFOTYPE, "FIFO"), (tarfile.BLKTYPE, "block device")])
def test_a_source_that_is_special_is_an_error(kind: bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(TransferError, match=rf"failed: it is a {words}\. Create one here with special=True"):
        get(stream(member("tree", kind=kind)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_source_that_is_a_link_is_an_error_that_names_its_target(tmp_path: Path) -> None:
    words = r"failed: it is a symbolic link to \.\./run/x\\x07\. Copy /run/x\\x07 instead, or the link itself with "
    with pytest.raises(TransferError, match=words):
        get(stream(link("tree", "../run/x\x07")), tmp_path / "out")
    assert get(stream(link("tree", "../run")), tmp_path / "out", special=True).path.readlink() == Path("../run")


LINKS = {  # whether they stay in the tree
    "file": True,
    "none": True,
    "a/b/../../file": True,
    "./a//b/": True,
    ".": True,
    "a/..": True,
    "loop": True,
    "..": False,
    "../tree/file": False,
    "a/../../tree": False,
    "/": False,
    "none/../file": False,  # `none` may become a link
    "inside/../file": False,
    "file/../file": False,
}


@pytest.mark.parametrize("target", LINKS)
def test_links_that_stay_in_the_tree_are_kept(target: str, tmp_path: Path) -> None:
    sent = stream(
        *(folder("tree"), link("tree/loop", target), link("tree/inside", "a/b")),
        *(
            folder("tree/a"),
            folder("tree/a/b"),
            link("tree/a/b/deep", str(Path("../..") / target)),
            member("tree/file"),
        ),
    )
    received = get(sent, tmp_path / "out")
    assert (received.path / "inside").is_symlink()
    for each in ("loop", "a/b/deep"):
        assert (received.path / each).is_symlink() == LINKS[target], each


def test_two_transfers_cannot_build_a_link_that_leads_out(tmp_path: Path) -> None:
    """Each of the two is harmless alone: `x` would lead to a folder, through which `..` leads out."""
    top, deep = [folder("tree"), folder("tree/a"), folder("tree/a/b")], "tree/a/b/x"
    get(stream(*top, link(deep, "."), link("tree/y", "a/b/x/../../../../outside")), tmp_path)
    get(stream(*top, link("tree/z", "a"), link("tree/a/b/x", "..")), tmp_path)
    for each in tmp_path.rglob("*"):
        assert each.resolve().is_relative_to(tmp_path / "tree")


def test_folders_get_their_modes_and_times_last(tmp_path: Path) -> None:
    sent = [folder("tree", 0o555), folder("tree/closed", 0), member("tree/closed/file"), folder("tree/x", 0o750)]
    path = get(stream(*sent), tmp_path / "out").path
    modes = [each.stat().st_mode & 0o777 for each in (path, path / "closed", path / "x")]
    assert modes == [0o555, 0, 0o750]
    assert {each.stat().st_mtime for each in (path, path / "closed", path / "x")} == {1_700_000_000}
    (path / "closed").chmod(0o700)
    path.chmod(0o700)


def test_later_members_replace_earlier_ones(tmp_path: Path) -> None:
    sent = [
        *(folder("tree"), member("tree/x", b"first", mode=0o600), hard_link("tree/y", "tree/x")),
        *(member("tree/x", b"second"), folder("tree"), folder("tree/z"), member("tree/z/a"), folder("tree/z", 0o700)),
    ]
    path = get(stream(*sent), tmp_path / "out").path
    assert [(path / each).read_text() for each in ("x", "y", "z/a")] == ["second", "first", "evil"]
    assert (path / "z").stat().st_mode & 0o777 == 0o700


def test_hard_links_stay_hard_links(tmp_path: Path) -> None:
    sent = [folder("tree"), member("tree/x"), hard_link("tree/y", "tree/x"), hard_link("tree/z", "tree/none")]
    received = get(stream(*sent), tmp_path / "out")
    assert (received.path / "x").stat().st_ino == (received.path / "y").stat().st_ino
    assert received.skipped.startswith("skipped 1 of 4: z (hard link to none, which has not arrived)")


def test_names_that_are_not_utf8_stay_as_they_are(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    name = os.fsdecode(b"\xff\x80 x")
    (source / name).mkdir()
    (source / name / name).write_text("content")
    sent = subprocess.run(["tar", "-c", "-C", source, name], capture_output=True, check=True).stdout
    assert (get(sent, out, f"/srv/{name}").path / name).read_text() == "content"


def test_a_folder_itself_can_be_copied(tmp_path: Path) -> None:
    sent = stream(folder("."), member("./x"), folder("./sub"), member("./sub/y"))
    assert get(sent, tmp_path / "new", ".").path == tmp_path / "new"
    (tmp_path / "old" / "sub").mkdir(parents=True)
    (tmp_path / "old" / "sub" / "z").write_text("mine")
    assert get(sent, tmp_path / "old", ".").path == tmp_path / "old"
    assert set(facts(tmp_path / "old")) == {"x", "sub", "sub/y", "sub/z"}
    assert set(facts(tmp_path / "new")) == {"x", "sub", "sub/y"}


TARS = {
    "GNU": ["tar", "-S"],
    "GNU, old": ["tar", "-S", "--format=oldgnu"],
    "GNU, ustar": ["tar", "--format=ustar"],
    "GNU, v7": ["tar", "--format=v7"],
    "GNU, pax": ["tar", "-S", "--format=pax"],
    "GNU, pax, sparse 0.0": ["tar", "-S", "--format=pax", "--sparse-version=0.0"],
    "GNU, pax, sparse 0.1": ["tar", "-S", "--format=pax", "--sparse-version=0.1"],
    "bsdtar": ["bsdtar"],
    "bsdtar, pax": ["bsdtar", "--format=pax"],
    "bsdtar, GNU": ["bsdtar", "--format=gnutar"],
    "busybox": ["busybox", "tar"],
}


@pytest.mark.parametrize("tar", TARS)
def test_streams_of_every_tar_arrive_as_they_were_sent(tar: str, tmp_path: Path) -> None:
    command = TARS[tar]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    tree = tmp_path / "tree"
    deep = tree / "sub" if tar == "GNU, v7" else tree.joinpath(*["folder " + "y" * 40] * 4)  # 100 bytes are its limit
    deep.mkdir(parents=True)
    (deep / ("name " + "z" * 30)).write_text("deep")
    (deep / "link").symlink_to("t" * (60 if tar in ("GNU, ustar", "GNU, v7") else 150))
    (tree / "empty").mkdir(mode=0o711)
    (tree / "file").write_bytes(os.urandom(3 * 65536 + 7))
    (tree / "file").chmod(0o741)
    os.link(tree / "file", tree / "hard")
    for name, places in (("one", [0]), ("many", range(0, 4 * MIB, 65536)), ("end", [4 * MIB - 4]), ("none", [])):
        with (tree / name).open("wb") as file:
            file.truncate(4 * MIB)
            for at in places:
                file.seek(at)
                file.write(b"data")
    for each in (*tree.rglob("*"), tree):
        os.utime(each, (1_600_000_000, 1_600_000_000), follow_symlinks=False)
    words = [*command, "-cf", "-", "tree"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, check=True, env={**os.environ, "LC_ALL": "C"})
    for piece in (len(done.stdout), 5000):
        received = get(done.stdout, tmp_path / "out" / str(piece), piece=piece)
        assert received.skipped == ""
        assert facts(received.path) == facts(tree)
        assert received.path.stat().st_mtime == 1_600_000_000
        assert (received.path / "file").stat().st_ino == (received.path / "hard").stat().st_ino
        if "-S" in command or command == ["bsdtar"]:
            blocks = {each: (received.path / each).stat().st_blocks * 512 for each in ("one", "many", "end", "none")}
            assert max(blocks.values()) < MIB


def sparse_of(size: int, folder: Path) -> bytes:
    """Return the stream of GNU tar for a file that consists mostly of holes."""
    file = folder / "tree"
    with file.open("wb") as writer:
        writer.truncate(size)
        writer.seek(size - MIB)
        writer.write(b"data")
    done = subprocess.run(["tar", "-S", "-c", "-C", folder, "tree"], capture_output=True, check=True)
    file.unlink()
    return done.stdout


def test_a_sparse_file_of_15_tib_costs_nothing(tmp_path: Path) -> None:
    try:
        sent = sparse_of(15 * TIB, tmp_path)
    except OSError as error:
        pytest.skip(f"this file system has no such files: {error}")
    path = get(sent, tmp_path / "out").path
    assert path.stat().st_size == 15 * TIB
    assert path.stat().st_blocks * 512 < MIB


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="needs a second file system")
def test_files_for_another_file_system_are_copied(tmp_path: Path) -> None:
    """The destination may have mount points below it."""
    (tmp_path / "tree" / "old").mkdir(parents=True)
    (tmp_path / "tree" / "old" / "x").write_text("new")
    (tmp_path / "tree" / "new").mkdir()
    (tmp_path / "tree" / "new" / "link").symlink_to("/nowhere")
    os.mkfifo(tmp_path / "tree" / "new" / "fifo", 0o640)
    (tmp_path / "tree" / "sparse").write_bytes(b"x")
    with (tmp_path / "tree" / "sparse").open("r+b") as file:
        file.truncate(64 * MIB)
        file.seek(32 * MIB)
        file.write(b"data")
    (tmp_path / "tree" / "sparse").chmod(0o751)
    before = facts(tmp_path / "tree")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        there = Path(name)
        (there / "victim").write_text("untouched")
        (there / "tree" / "old").mkdir(parents=True)
        (there / "tree" / "old" / "x").symlink_to(there / "victim")
        (there / "tree" / "new").symlink_to(there)
        assert there.stat().st_dev != tmp_path.stat().st_dev
        at, to = os.open(tmp_path, os.O_RDONLY), os.open(there, os.O_RDONLY)
        install.place(at, b"tree", to, b"tree")
        os.close(at)
        os.close(to)
        after = facts(there / "tree")
        for each in ("old", "new"):  # the modes of folders are set later
            del after[each], before[each]
        assert after == before
        assert (there / "tree" / "sparse").stat().st_blocks * 512 < MIB
        assert (there / "victim").read_text() == "untouched"
        assert sorted(each.name for each in there.iterdir()) == ["tree", "victim"]


def test_a_folder_that_becomes_a_link_midway_does_not_lead_outside(outside: Path, tmp_path: Path) -> None:
    dest = tmp_path / "out"
    get(stream(folder("tree"), folder("tree/x"), member("tree/x/victim")), dest)
    real = os.open

    def swapping(path: object, flags: int, *arguments: int, dir_fd: int | None = None) -> int:
        if path == b"x" and (dest / "tree").is_dir() and not (dest / "tree" / "x").is_symlink():
            shutil.rmtree(dest / "tree" / "x")
            (dest / "tree" / "x").symlink_to(outside / "folder")
        return real(path, flags, *arguments, dir_fd=dir_fd)  # type: ignore[arg-type]

    (dest / "tree" / "x").mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", swapping)
        with pytest.raises(TransferError, match=r"failed here: .*Not a directory"):
            get(stream(folder("tree"), folder("tree/x", 0o777), member("tree/x/victim")), dest)


def test_a_full_disk_is_an_error_that_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the size of files ends a write, too."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, old[1]))
    try:
        with pytest.raises(TransferError, match=r"of the guest to .*out failed here: .*File too large"):
            get(stream(folder("tree"), member("tree/x", bytes(2 * MIB))), tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert not list(tmp_path.iterdir())


def test_an_existing_socket_or_other_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    os.mkfifo(tmp_path / "tree" / "x")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(tmp_path / "tree" / "y"))
    get(stream(folder("tree"), member("tree/x"), member("tree/y")), tmp_path)
    assert [(tmp_path / "tree" / each).read_text() for each in ("x", "y")] == ["evil", "evil"]


def test_many_members_use_no_memory(tmp_path: Path) -> None:
    one = b"".join(stream(member(f"tree/{number}", b""))[:512] for number in range(10))
    sent = stream(folder("tree"))[:512] + 500 * one + bytes(1024)
    tracemalloc.start()
    try:
        received = get(sent, tmp_path / "out", piece=256 * 1024)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(list(received.path.iterdir())) == 10
    assert peak < 2 * MIB


NAMES = st.sampled_from(["tree/a", "tree/a/b", "tree/a/b/c", "tree/b", "tree/b/c", "tree/./a", "tree/a/../../x"])
TARGETS = st.sampled_from(
    [
        *("{outside}", "{outside}", "{outside}/victim", "..", "../..", "../../outside", "../../../outside", "a"),
        *("b", "../a", "../b", "a/..", "b/..", "a/../..", "b/../..", "b/../../../outside", "tree/a", "tree/b", "."),
    ]
)
KINDS = st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE])
MEMBERS = st.lists(
    st.builds(
        lambda name, kind, to, mode: member(name, kind=kind, to=to, mode=mode),
        *(NAMES, KINDS, TARGETS, st.sampled_from([0o755, 0o4777])),
    ),
    min_size=1,
    max_size=4,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(transfers=st.lists(MEMBERS, min_size=1, max_size=3), planted=st.booleans())
def test_no_sequence_of_transfers_changes_anything_outside(
    transfers: list[list[tuple[tarfile.TarInfo, bytes]]], planted: bool
) -> None:
    """The first transfer may use special=True, after which there may be any links, which are not compared."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        out = root / "out"
        out.mkdir()
        (root / "outside").mkdir()
        (root / "outside" / "victim").write_text("untouched")
        before = facts(root)
        for number, members in enumerate(transfers):
            for entry, _ in members:
                entry.linkname = entry.linkname.replace("{outside}", str(root / "outside"))
            with contextlib.suppress(TransferError):
                get(stream(folder("tree"), *members), out, special=planted and number == 0)
            found = {each: what for each, what in facts(root).items() if not each.startswith("out/")}
            assert found == before
            for each in () if planted else out.rglob("*"):
                with contextlib.suppress(RuntimeError):  # a loop, which leads nowhere
                    assert each.resolve().is_relative_to(out.resolve() / "tree")
