"""The memory use of a container, from the kernel's files in both versions of control groups."""

from pathlib import Path

import pytest

from pytest_virtainers.engine.docker import cgroup

ID = "0123456789abcdef"
V1 = f"12:cpu,cpuacct:/docker/{ID}\n4:memory:/docker/{ID}\n0::/system.slice\n"
V2 = f"0::/system.slice/docker-{ID}.scope\n"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cgroup, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(cgroup, "_MOUNT", tmp_path / "cgroup")
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("groups", "file", "said"),
    [
        (V1, f"memory/docker/{ID}/memory.stat", f"cache 9\nrss 1\ntotal_rss {80 << 20}\n"),
        (V2, f"system.slice/docker-{ID}.scope/memory.stat", f"anon {80 << 20}\nfile 9\n"),
    ],
    ids=["version 1", "version 2"],
)
def test_memory_is_read_without_page_cache(host: Path, groups: str, file: str, said: str) -> None:
    write(host / "proc/7/cgroup", groups)
    write(host / "cgroup" / file, said)
    assert cgroup.memory_used_mib(7, ID) == 80


@pytest.mark.parametrize(
    "groups",
    [None, "0::/user.slice\n", "4:memory:/user.slice\n", V1, "nonsense\n"],
    ids=["no such process", "the process of another", "a group of many", "no file", "no group"],
)
def test_foreign_groups_are_not_read(host: Path, groups: str | None) -> None:
    if groups is not None:
        write(host / "proc/7/cgroup", groups)
    write(host / "cgroup/user.slice/memory.stat", "anon 1\n")
    write(host / "cgroup/memory/user.slice/memory.stat", "total_rss 1\n")
    assert cgroup.memory_used_mib(7, ID) is None
