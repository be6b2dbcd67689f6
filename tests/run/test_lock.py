"""One run per folder: who comes second is told who is there, and nobody who is gone keeps the folder."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from prefopt.errors import RecipeError, StorageError
from prefopt.run import lock
from prefopt.run.lock import NAME, NAME_WITHOUT_LOCKS, Owner, held

HOLDER = """
import sys, time
from pathlib import Path
from prefopt.run.lock import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the file system know no locks, as some network file systems do."""

    def refuse(*arguments: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)


def leave(path: Path, owner: Owner) -> None:
    path.write_text(json.dumps(asdict(owner)) + "\n")


def test_the_second_is_told_who_holds_the_folder(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(RecipeError) as caught, held(tmp_path):
        pass
    words = str(caught.value)
    assert re.search(rf"in use by another run \(process {holder.pid} on \S+ since \d{{4}}-\d\d-\d\d ", words)
    assert "\n" not in words and "output=" in words


def test_a_killed_holder_leaves_the_folder_free(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / NAME).exists()
    said: list[str] = []
    with held(tmp_path, said.append):
        assert len(said) == 1 and f"left behind by process {holder.pid}" in said[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("has_locks", [True, False])
def test_one_process_holds_a_folder_once(
    has_locks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whatever name it calls the folder, and from whichever thread."""
    if not has_locks:
        without_locks(monkeypatch)
    folder, other = tmp_path / "run", tmp_path / "link"
    folder.mkdir()
    other.symlink_to(folder)
    found: list[str] = []

    def start() -> None:
        try:
            with held(other):
                found.append("held")
        except RecipeError as error:
            found.append(str(error))

    with held(folder):
        thread = threading.Thread(target=start)
        thread.start()
        thread.join()
    assert len(found) == 1 and f"process {os.getpid()} on" in found[0]
    with held(other):
        pass
    assert [path.name for path in folder.iterdir()] == ([] if has_locks else [NAME])


def test_of_many_at_once_one_gets_it(tmp_path: Path) -> None:
    """Eight threads ask by eight open files, past what one process knows of itself; the rest are refused."""
    for _ in range(5):
        got, start, done = [], threading.Barrier(8), threading.Barrier(8)

        def ask(
            got: list[bool] = got, start: threading.Barrier = start, done: threading.Barrier = done
        ) -> None:
            start.wait()
            try:
                release = lock._take(tmp_path / NAME, lambda line: None)
            except RecipeError:
                got.append(False)
                done.wait()
            else:
                got.append(True)
                done.wait()
                release()

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(got) == [False] * 7 + [True]


GONE = {
    "ended": {"pid": 2**22 + 1},
    "its number was given to another": {"started": "another boot 1"},
}


@pytest.mark.parametrize("change", GONE.values(), ids=GONE.keys())
def test_without_locks_a_process_that_is_gone_is_taken_over(
    change: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_locks(monkeypatch)
    leave(tmp_path / NAME_WITHOUT_LOCKS, replace(Owner.here(), **change))
    said: list[str] = []
    with held(tmp_path, said.append):
        assert len(said) == 1 and "left behind by process" in said[0]
    assert not (tmp_path / NAME_WITHOUT_LOCKS).exists()


@pytest.mark.parametrize("owner", ["alive", "on another host", "unknown"])
def test_without_locks_whoever_may_be_there_is_respected(
    owner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_locks(monkeypatch)
    path, here = tmp_path / NAME_WITHOUT_LOCKS, Owner.here()
    leave(path, replace(here, host="elsewhere", pid=2**22 + 1) if owner == "on another host" else here)
    if owner == "unknown":
        path.write_text("")
    before = path.read_bytes()
    with (
        pytest.raises(RecipeError, match=re.escape(f"if that process is no more, delete {path}")),
        held(tmp_path),
    ):
        pass
    assert path.read_bytes() == before


def test_a_disk_that_cannot_hold_the_lock_is_a_storage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StorageError, match="No space left on device"), held(tmp_path):
        pass
    monkeypatch.undo()
    with held(tmp_path):
        pass
