"""The verb ``verify``: whether the checkpoints and the final model of a run are what was written."""

from __future__ import annotations

from pathlib import Path

from prefopt.errors import CorruptError, RecipeError, user_errors
from prefopt.run.checkpoint import STATE, checkpoints, faults_of
from prefopt.run.folder import RunFolder
from prefopt.run.manifest import MANIFEST, faults, names_in
from prefopt.verbs.progress import Display


def run(path: str | Path) -> int:
    """Read every file that a manifest names and compare size and SHA-256.

    Args:
        path: folder of a run, of one checkpoint, or a final model.

    Returns:
        How many files were compared.

    Raises:
        CorruptError: a file is damaged, missing or too many; a line for each.
        RecipeError: there is nothing to verify.
    """
    path = Path(path)
    with user_errors():
        sealed = _sealed(path)
        if not sealed:
            raise RecipeError(
                f"{path}: there is neither a run nor a checkpoint. Give the output folder of a run."
            )
        found = [line for folder in sealed for line in _faults(folder)]
        if found:
            raise CorruptError("\n".join(found))
        count = sum(len(names_in(folder)) for folder in sealed)
    Display(0).say(f"{path}: {count} files in {len(sealed)} folder(s) are what was written")
    return count


def _sealed(path: Path) -> list[Path]:
    """Return the folders that have, or should have, a manifest."""
    if (path / MANIFEST).is_file() or (path / STATE).is_file():
        return [path]
    folder = RunFolder(path)
    final = [folder.final] if folder.final.is_dir() or folder.is_finished else []
    return [*checkpoints(folder.checkpoints), *final]


def _faults(folder: Path) -> list[str]:
    is_checkpoint = (folder / STATE).is_file() or folder.parent.name == "checkpoints"
    if not is_checkpoint:
        return faults(folder, allows_more=True)  # who has a final model may add to it
    found = faults_of(folder)
    return found if folder.exists() else []  # a run that goes on may have removed it meanwhile
