import hashlib
import os
from pathlib import Path

import pytest

from pytest_virtainers.support.files import file_digest, open_private


@pytest.mark.parametrize("mode", ["wb", "ab", "xb"])
def test_private_files_are_readable_only_by_their_user(tmp_path: Path, mode: str) -> None:
    before = os.umask(0)
    try:
        with open_private(tmp_path / "file", mode) as file:
            file.write(b"content")
    finally:
        os.umask(before)
    assert (tmp_path / "file").read_bytes() == b"content"
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("mode", ["wb", "ab", "xb"])
def test_open_private_does_not_follow_links(tmp_path: Path, mode: str) -> None:
    (tmp_path / "precious").write_text("unchanged")
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match=r"symbolic links|File exists"):
        open_private(tmp_path / "link", mode)
    assert (tmp_path / "precious").read_text() == "unchanged"


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_file_digest_reports_its_progress(tmp_path: Path, algorithm: str) -> None:
    content = bytes(3 * 2**20)
    (tmp_path / "file").write_bytes(content)
    messages: list[str] = []
    assert file_digest(tmp_path / "file", messages.append, algorithm) == hashlib.new(algorithm, content).hexdigest()
    assert messages[-1] == f"checking [{'#' * 24}] 100 % of 3 MiB"
    assert len(messages) == 3
