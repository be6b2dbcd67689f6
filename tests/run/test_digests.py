"""A file's digest is remembered as long as the file is what it was, and not a moment longer."""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import pytest

from prefopt.errors import ModelError
from prefopt.run import digests
from prefopt.run.digests import FileDigests


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Remember at once, and tell which files were read."""
    found: list[Path] = []
    real = FileDigests._hash

    def watched(self: FileDigests, path: Path) -> str:
        found.append(path)
        return real(self, path)

    monkeypatch.setattr(FileDigests, "_hash", watched)
    monkeypatch.setattr(digests, "SETTLED", -1)
    return found


def digest(memory: Path, path: Path) -> str:
    """Ask as a start of the program does."""
    with closing(FileDigests(memory)) as files:
        return files.of([path])[0]


def test_a_file_is_hashed_once_over_all_starts(tmp_path: Path, read: list[Path]) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(range(256)) * 9000)  # several blocks
    expected = sha256(path.read_bytes()).hexdigest()
    assert [digest(tmp_path / "memory", path) for _ in range(3)] == [expected] * 3
    (tmp_path / "link").symlink_to(path)
    assert digest(tmp_path / "memory", tmp_path / "link") == expected
    assert read == [path]


@pytest.mark.parametrize("how", ["in place", "replaced", "touched"])
def test_a_change_is_seen_though_size_and_date_are_as_before(
    how: str, tmp_path: Path, read: list[Path]
) -> None:
    path, memory = tmp_path / "weights", tmp_path / "memory"
    path.write_bytes(b"0" * 5000)
    first, before = digest(memory, path), path.stat()
    time.sleep(0.05)  # beyond the tick of the file system's clock
    content = b"0" * 5000 if how == "touched" else b"0" * 2500 + b"1" + b"0" * 2499
    if how == "replaced":
        other = tmp_path / "other"
        other.write_bytes(content)
        os.replace(other, path)
    elif how == "in place":
        with path.open("r+b") as file:
            file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert digest(memory, path) == sha256(content).hexdigest()
    assert (digest(memory, path) == first) == (how == "touched")
    assert read == [path, path]


def test_what_changed_a_moment_ago_is_not_remembered(
    tmp_path: Path, read: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "SETTLED", 2_000_000_000)
    path = tmp_path / "weights"
    path.write_bytes(b"new")
    assert digest(tmp_path / "memory", path) == digest(tmp_path / "memory", path)
    assert read == [path, path]


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b'{"sha256": 1}', b"flip", b"\xff\xfe"], ids=repr)
def test_a_damaged_memory_is_made_anew(damage: bytes, tmp_path: Path, read: list[Path]) -> None:
    path, memory = tmp_path / "weights", tmp_path / "memory"
    path.write_bytes(b"content")
    expected = digest(memory, path)
    (entry,) = memory.iterdir()
    if damage == b"flip":
        stored = json.loads(entry.read_text())
        stored["sha256"] = ("1" if stored["sha256"][0] == "0" else "0") + stored["sha256"][1:]
        damage = json.dumps(stored).encode()
    entry.write_bytes(damage)
    assert [digest(memory, path) for _ in range(2)] == [expected] * 2
    assert read == [path, path]


def test_writers_at_once_leave_one_whole_memory(tmp_path: Path, read: list[Path]) -> None:
    path, memory = tmp_path / "weights", tmp_path / "memory"
    path.write_bytes(b"x" * 300_000)
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: digest(memory, path), range(40)))
    before = len(read)
    assert found == {digest(memory, path)} == {sha256(path.read_bytes()).hexdigest()}
    assert len(read) == before and len(list(memory.iterdir())) == 1


def test_a_memory_that_cannot_be_written_costs_time_alone(
    tmp_path: Path, read: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"x")
    (tmp_path / "memory").write_text("a file where a folder should be")
    assert digest(tmp_path / "memory", path) == sha256(b"x").hexdigest()
    assert "a digest could not be kept" in caplog.text


def test_a_file_that_is_being_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"x" * 10)
    real = FileDigests._hash

    def slow(self: FileDigests, path: Path) -> str:
        found = real(self, path)
        with path.open("ab") as file:
            file.write(b"more")
        return found

    monkeypatch.setattr(FileDigests, "_hash", slow)
    with pytest.raises(ModelError, match="the file changed while it was read"):
        digest(tmp_path / "memory", path)


def test_a_lost_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"gone: it cannot be read \(No such file or directory\)"):
        digest(tmp_path / "memory", tmp_path / "gone")


def test_closing_does_not_wait_for_large_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file without an end: hashing it stops where the run does."""
    path = tmp_path / "endless"
    path.symlink_to("/dev/zero")
    files = FileDigests(tmp_path / "memory")
    under_way = files.start(path)
    files.close()
    assert under_way.cancelled() or "broken off" in str(under_way.exception())
