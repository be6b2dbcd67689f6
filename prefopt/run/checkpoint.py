"""Checkpoints that are either whole or invisible, and how a run finds the last good one.

A checkpoint is a folder ``step-000123`` that ``manifest`` seals: written under a temporary name, then renamed. One
that does not match its manifest is never picked. Only safetensors and JSON are read; nothing is unpickled.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prefopt.errors import CorruptError, writing
from prefopt.run.manifest import faults, flush, read_json, seal, write_plain_json

STATE = "state.json"
_PREFIX = "step-"
_TEMPORARY = ".tmp-"
_WAY_OUT = "Free space or permissions, then run again with --resume."


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
    temporary = folder / f"{_TEMPORARY}{target.name}-{uuid.uuid4().hex[:8]}"
    try:
        with writing(target, _WAY_OUT):
            temporary.mkdir(parents=True)
            write(temporary)
            write_plain_json(temporary / STATE, {"step": step, **state})
            seal(temporary)
            if target.exists():
                os.rename(target, _grave(target))
            os.rename(temporary, target)
            flush(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def load_state(path: Path) -> dict[str, Any]:
    """Return the ``state.json`` of a checkpoint."""
    return read_json(path / STATE)


def faults_of(path: Path) -> list[str]:
    """Return what is wrong with a checkpoint, a line each: its files, or that it bears the name of another step."""
    found = faults(path, needs=STATE)
    if found or not _is_named(path):
        return found
    step = load_state(path)["step"]
    if step == step_of(path):
        return []
    return [
        f"{path}: it was written after step {step}, so its name is wrong. Rename it to {checkpoint_name(step)}."
    ]


def verify(path: Path) -> None:
    """Compare every file of a checkpoint with its manifest, and its step with its name.

    Raises:
        CorruptError: a file is missing, extra, or not what was written, or the checkpoint is that of another step.
    """
    if found := faults_of(path):
        raise CorruptError(found[0])


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
    return sorted((p for p in folder.glob(f"{_PREFIX}*") if p.is_dir() and _is_named(p)), key=step_of)


def _is_named(path: Path) -> bool:
    return path.name.startswith(_PREFIX) and path.name.removeprefix(_PREFIX).isdigit()


def prune(folder: Path, keep: int, protect: frozenset[str] = frozenset()) -> None:
    """Remove all but the newest ``keep`` checkpoints and those named in ``protect``; sweep left-overs.

    Called after one was committed, with that one protected, so at least one good checkpoint always remains.
    """
    assert keep >= 1
    for path in checkpoints(folder)[:-keep]:
        if path.name not in protect:
            # under a name that is no checkpoint's first, so that a half-removed one is never picked
            with writing(path, "The new checkpoint is whole. " + _WAY_OUT):
                os.rename(path, _grave(path))
    sweep(folder)


def sweep(folder: Path) -> None:
    """Remove what saves and removals left unfinished; only whoever holds the run's lock may."""
    for left in folder.glob(f"{_TEMPORARY}*"):
        if is_temporary(left.name):
            shutil.rmtree(left, ignore_errors=True)


def is_temporary(name: str) -> bool:
    """Whether a name in the folder of checkpoints is that of one which is not finished, or no longer wanted."""
    return name.startswith((f"{_TEMPORARY}{_PREFIX}", f"{_TEMPORARY}old-{_PREFIX}"))


def is_checkpoint(name: str) -> bool:
    """Whether a name in the folder of checkpoints is that of one, damaged ones included."""
    return name.removeprefix("damaged-").removeprefix(_PREFIX).split("-")[0].isdigit() and _PREFIX in name


def _grave(path: Path) -> Path:
    return path.with_name(f"{_TEMPORARY}old-{path.name}-{uuid.uuid4().hex[:8]}")


def set_aside_after(folder: Path, step: int) -> None:
    """Rename checkpoints newer than ``step``, which a resumed run passed over, so that they are never counted."""
    for path in checkpoints(folder):
        if step_of(path) > step:
            with writing(path):
                os.rename(path, folder / f"damaged-{path.name}-{uuid.uuid4().hex[:8]}")
