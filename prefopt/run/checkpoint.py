"""Checkpoints that are either whole or invisible, and how a run finds the last good one.

A checkpoint is a folder ``step-000123`` written under a temporary name, every file flushed to disk,
``manifest.json`` (size and SHA-256 of each file) last, then renamed. A folder without a manifest that
matches its files is never picked. Only safetensors and JSON are read; nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from prefopt.errors import CorruptError, PrefoptError

MANIFEST = "manifest.json"
STATE = "state.json"
_PREFIX = "step-"


class StorageError(PrefoptError):
    """A file that could not be written; what was there before is untouched."""

    exit_code = 74


def checkpoint_name(step: int) -> str:
    """Return the folder name of the checkpoint after ``step`` optimizer steps."""
    return f"{_PREFIX}{step:06d}"


def step_of(path: Path) -> int:
    """Return the number of optimizer steps a checkpoint folder was written after."""
    return int(path.name.removeprefix(_PREFIX))


def save(folder: Path, step: int, write: Callable[[Path], None], state: Mapping[str, Any]) -> Path:
    """Write one checkpoint and commit it.

    Args:
        folder: holds all checkpoints of a run.
        step: optimizer steps done.
        write: puts the weights and the optimizer state into the folder it is given.
        state: plain values, stored as ``state.json``.

    Raises:
        StorageError: a file could not be written; no checkpoint was changed or removed.
    """
    target = folder / checkpoint_name(step)
    temporary = folder / f".tmp-{target.name}-{uuid.uuid4().hex[:8]}"
    try:
        temporary.mkdir(parents=True)
        write(temporary)
        _write_json(temporary / STATE, {"step": step, **state})
        _write_json(temporary / MANIFEST, {"files": _digests(temporary)})
        _flush_tree(temporary)
        if target.exists():
            os.replace(target, folder / f".tmp-old-{target.name}-{uuid.uuid4().hex[:8]}")
        os.rename(temporary, target)
        _flush(folder)
    except (OSError, SafetensorError) as error:
        # safetensors wraps a full disk in an error of its own
        shutil.rmtree(temporary, ignore_errors=True)
        raise StorageError(
            f"{target}: the checkpoint could not be written ({getattr(error, 'strerror', None) or error}). "
            f"Free space or permissions, then run again with --resume."
        ) from None
    return target


def load_state(path: Path) -> dict[str, Any]:
    """Return the ``state.json`` of a checkpoint."""
    return _read_json(path / STATE)


def verify(path: Path) -> None:
    """Compare every file of a checkpoint with its manifest.

    Raises:
        CorruptError: a file is missing, extra, or not what was written.
    """
    if not (path / MANIFEST).is_file():
        raise CorruptError(f"{path}: there is no {MANIFEST}, so the checkpoint was never finished.")
    files = _read_json(path / MANIFEST).get("files")
    if not isinstance(files, dict) or STATE not in files:
        raise CorruptError(f"{path / MANIFEST}: it lists no files. Delete the checkpoint.")
    found = {str(file.relative_to(path)) for file in _files(path)} - {MANIFEST}
    for name in sorted(found | files.keys()):
        if name not in found:
            raise CorruptError(f"{path / name}: the file is missing.")
        if name not in files:
            raise CorruptError(f"{path / name}: the file is not in the manifest.")
        expected, got = files[name], _digest(path / name)
        if got != expected:
            raise CorruptError(f"{path / name}: the content is {got}, but {expected} was written.")


def latest_valid(folder: Path, report: Callable[[str], None] = lambda line: None) -> Path | None:
    """Return the newest checkpoint whose every file is what was written, or None.

    Args:
        folder: holds all checkpoints of a run.
        report: told about each newer checkpoint that was passed over, and why.
    """
    for path in sorted(checkpoints(folder), key=step_of, reverse=True):
        try:
            verify(path)
        except CorruptError as error:
            report(f"{error} Falling back to an older checkpoint.")
        else:
            return path
    return None


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoint folders, oldest first, valid or not."""
    found = [p for p in folder.glob(f"{_PREFIX}*") if p.is_dir() and p.name.removeprefix(_PREFIX).isdigit()]
    return sorted(found, key=step_of)


def prune(folder: Path, keep: int, protect: frozenset[str] = frozenset()) -> None:
    """Remove all but the newest ``keep`` checkpoints and those named in ``protect``; sweep left-overs.

    Called after one was committed, with that one protected, so at least one good checkpoint always remains.
    """
    assert keep >= 1
    for path in checkpoints(folder)[:-keep]:
        if path.name not in protect:
            # under a name that is no checkpoint's first, so that a half-removed one is never picked
            grave = folder / f".tmp-old-{path.name}-{uuid.uuid4().hex[:8]}"
            os.rename(path, grave)
    for left in folder.glob(".tmp-*"):
        shutil.rmtree(left, ignore_errors=True)


def set_aside_after(folder: Path, step: int) -> None:
    """Rename checkpoints newer than ``step``, which a resumed run passed over, so that they are never counted."""
    for path in checkpoints(folder):
        if step_of(path) > step:
            os.rename(path, folder / f"damaged-{path.name}-{uuid.uuid4().hex[:8]}")


def write_json(path: Path, value: Any) -> None:
    """Replace a small JSON file in one step: readers see the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        _write_json(temporary, value)
        _flush(temporary)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StorageError(f"{path}: it could not be written ({error.strerror or error}).") from None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CorruptError: it is not one.
    """
    return _read_json(path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CorruptError(f"{path}: it cannot be read as JSON ({error}).") from None
    if not isinstance(value, dict):
        raise CorruptError(f"{path}: it holds a {type(value).__name__}, not an object.")
    return value


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _digests(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): _digest(path) for path in _files(folder)}


def _digest(path: Path) -> str:
    """Return "size:sha256" of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256") if hasattr(hashlib, "file_digest") else _sha256(file)
    return f"{path.stat().st_size}:{digest.hexdigest()}"


def _sha256(file: Any) -> Any:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest


def _flush_tree(folder: Path) -> None:
    for path in [*_files(folder), *(p for p in folder.rglob("*") if p.is_dir()), folder]:
        _flush(path)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
