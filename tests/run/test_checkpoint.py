"""A checkpoint is whole or invisible, and the last good one is always found."""

import os
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from lanes import slow_but

from prefopt.errors import CorruptError, StorageError
from prefopt.run.checkpoint import latest_valid, load_state, prune, save, verify
from prefopt.run.manifest import read_json
from prefopt.verbs.verify import run as run_verify


def write(folder: Path) -> None:
    (folder / "model").mkdir()
    (folder / "model" / "weights.safetensors").write_bytes(bytes(range(256)) * 40)
    (folder / "optimizer.safetensors").write_bytes(b"moments" * 100)


def test_a_saved_checkpoint_verifies_and_returns_its_state(tmp_path: Path) -> None:
    path = save(tmp_path, 12, write, {"best": 0.5})
    verify(path)
    assert path.name == "step-000012"
    assert load_state(path) == {"step": 12, "best": 0.5}
    assert latest_valid(tmp_path) == path


@pytest.mark.parametrize("trials", slow_but([30], [30, 400]))
def test_every_changed_file_is_noticed(trials: int, tmp_path: Path) -> None:
    """Random mutations (flip, cut, extend, remove, add), none goes unseen."""
    rng = random.Random(0)
    for trial in range(trials):
        folder = tmp_path / str(trial % 4)
        path = save(folder, trial, write, {})
        files = [p for p in path.rglob("*") if p.is_file()]
        victim = rng.choice(files)
        content = bytearray(victim.read_bytes())
        kind = rng.choice(["flip", "cut", "extend", "remove", "add"])
        if kind == "flip":
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            victim.write_bytes(bytes(content))
        elif kind == "cut":
            victim.write_bytes(bytes(content[: rng.randrange(len(content))]))
        elif kind == "extend":
            victim.write_bytes(bytes(content) + b"x")
        elif kind == "remove":
            victim.unlink()
        else:
            (path / "extra.bin").write_bytes(b"x")
        if victim.name == "manifest.json" and kind in ("flip", "extend"):
            continue  # white space at the end of the manifest is no change of content; checked below
        with pytest.raises(CorruptError):
            verify(path)
        assert latest_valid(folder) != path
        prune(folder, keep=1)


def test_a_checkpoint_under_the_name_of_another_step_is_passed_over(tmp_path: Path) -> None:
    """As after a restore from a backup: every file is what was written, but not after that step."""
    first, second = (save(tmp_path, step, write, {}) for step in (2, 4))
    os.rename(second, tmp_path / "kept")
    shutil.copytree(first, second)
    said: list[str] = []
    assert latest_valid(tmp_path, said.append) == first
    (line,) = said
    assert line.startswith(
        f"{second}: it was written after step 2, so its name is wrong. Rename it to step-000002."
    )
    with pytest.raises(CorruptError, match="after step 2"):
        run_verify(second)
    assert run_verify(tmp_path / "kept") == 3  # a name that says nothing of a step is not wrong


def test_a_manifest_with_another_digest_is_noticed(tmp_path: Path) -> None:
    path = save(tmp_path, 1, write, {})
    manifest = path / "manifest.json"
    text = manifest.read_text()
    digest = read_json(manifest)["files"]["optimizer.safetensors"]
    manifest.write_text(text.replace(digest, digest[:-1] + ("0" if digest[-1] != "0" else "1")))
    with pytest.raises(CorruptError, match=r"optimizer\.safetensors"):
        verify(path)


def test_a_crash_at_any_call_leaves_the_older_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fail the n-th os call of a save with each error until a save runs through; the old one always stands."""
    for error in (28, 122, 5, 30, 24):  # ENOSPC, EDQUOT, EIO, EROFS, EMFILE
        for nth in range(100):
            folder = tmp_path / f"{error}-{nth}"
            old = save(folder, 1, write, {})
            with monkeypatch.context() as patch:
                calls = _fail_at(patch, nth, OSError(error, os.strerror(error)))
                with suppress(StorageError):
                    save(folder, 2, write, {})
            assert latest_valid(folder) in (old, folder / "step-000002")
            verify(old)
            if calls[0] <= nth:
                break
        else:
            pytest.fail("a save made 100 calls without an end")


def _fail_at(patch: pytest.MonkeyPatch, nth: int, error: OSError) -> list[int]:
    calls = [0]
    for name in ("fsync", "rename", "open", "mkdir"):
        real = getattr(os, name)

        def shim(*args: object, _real: Callable[..., object] = real, **kwargs: object) -> object:
            calls[0] += 1
            if calls[0] == nth + 1:
                raise error
            return _real(*args, **kwargs)

        patch.setattr(os, name, shim)
    return calls


def test_torn_folders_are_passed_over_and_reported(tmp_path: Path) -> None:
    good = save(tmp_path, 3, write, {})
    torn = tmp_path / "step-000004"
    torn.mkdir()
    (torn / "state.json").write_text("{}")
    lines: list[str] = []
    assert latest_valid(tmp_path, lines.append) == good
    assert len(lines) == 1 and "never finished" in lines[0]


def test_prune_keeps_the_newest_and_the_protected(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step, write, {})
    (tmp_path / ".tmp-step-000009-dead").mkdir()
    prune(tmp_path, keep=2, protect=frozenset({"step-000001"}))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000001", "step-000003", "step-000004"]


def test_saving_the_same_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 1, write, {"try": 1})
    assert load_state(save(tmp_path, 1, write, {"try": 2}))["try"] == 2
