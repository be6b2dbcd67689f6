"""Which checkpoint a run goes on from, and whether it is still the same run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prefopt.data.tokens.table import GroupTable
from prefopt.engine.sharding import whole
from prefopt.errors import CorruptError, ResumeError
from prefopt.recipe.diff import diff_recipes
from prefopt.recipe.strict_yaml import read_yaml
from prefopt.run.checkpoint import checkpoints, latest_valid, load_state, read_json, step_of
from prefopt.run.folder import RunFolder

_SAMPLED = 256
"""Numbers read from each end of a weight for its fingerprint."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a resumed run goes on: its last whole checkpoint and what was written down with it."""

    checkpoint: Path | None  # None: nothing was saved yet
    state: Mapping[str, Any]
    recipe: Mapping[str, Any] | None  # as the run was started
    facts: Mapping[str, Any] | None

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return step_of(self.checkpoint) if self.checkpoint is not None else 0


def find_origin(folder: RunFolder, report: Callable[[str], None]) -> Origin:
    """Find the checkpoint to go on from, and what the run was started with.

    Args:
        folder: of the run.
        report: hears of damaged checkpoints that are passed over.

    Raises:
        CorruptError: there are checkpoints and none of them is whole.
        ResumeError: the folder no longer says what was run.
    """
    path = latest_valid(folder.checkpoints, report) if folder.checkpoints.is_dir() else None
    if path is None and folder.checkpoints.is_dir() and checkpoints(folder.checkpoints):
        raise CorruptError(
            f"{folder.checkpoints}: none of the checkpoints is whole. Restore one, or start anew with --overwrite."
        )
    if path is not None:
        state = load_state(path)
        return Origin(path, state, state.get("recipe"), state.get("facts"))
    if not folder.recipe.is_file() or not folder.run.is_file():
        raise ResumeError(
            f"{folder.path}: recipe.yaml or run.json is missing, so nothing says what was run here. "
            f"Restore them, or start anew with --overwrite."
        )
    return Origin(None, {}, read_yaml(folder.recipe).value, read_json(folder.run).get("facts"))


def compare_recipes(origin: Origin, recipe: Mapping[str, Any]) -> None:
    """Refuse to go on with settings that would make it another run.

    Args:
        origin: of the run.
        recipe: the resolved one that it shall go on with.

    Raises:
        ResumeError: names every such setting, old and new.
    """
    if origin.recipe is None:
        raise ResumeError("checkpoint: it does not say with which recipe it was written. Start anew.")
    fatal = [str(change) for change in diff_recipes(origin.recipe, recipe) if change.is_fatal]
    if fatal:
        raise ResumeError(
            f"{recipe['output']}: the run was started with other settings ({'; '.join(fatal)}). "
            f"Resume with the old ones, or start anew in another output folder."
        )


def compare_facts(origin: Origin, facts: Mapping[str, Any]) -> None:
    """Refuse to go on when data or fixed weights are no longer those of the run.

    Raises:
        ResumeError: says which of them changed.
    """
    for key, value in facts.items():
        before = (origin.facts or {}).get(key)
        if before != value:
            raise ResumeError(
                f"resume: {key} was {before} and is {value} now, so the steps that are left would not be those of "
                f"this run. Restore what changed, or start anew with --overwrite."
            )


def rows_digest(table: GroupTable | None) -> str | None:
    """Return a digest of everything a plan and a pack read from tokenized rows."""
    if table is None:
        return None
    digest = blake2b(digest_size=16)
    for name in sorted(table.__dataclass_fields__):
        value = getattr(table, name)
        if hasattr(value, "tobytes"):
            digest.update(name.encode() + str(value.dtype).encode() + value.tobytes())
    digest.update(repr(table.source_weights).encode())
    return digest.hexdigest()


@torch.no_grad()
def weights_digest(parameters: Iterable[tuple[str, nn.Parameter]]) -> str | None:
    """Return a digest of the names, shapes and a sample of the numbers of weights; None where there are none.

    Of weights that are spread over ranks all ranks must ask.
    """
    digest = blake2b(digest_size=16)
    is_empty = True
    for name, parameter in parameters:
        is_empty = False
        flat = whole(parameter.detach()).flatten()
        sample = torch.cat([flat[:_SAMPLED], flat[-_SAMPLED:]]).float().cpu().contiguous()
        digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode())
        digest.update(sample.numpy().tobytes())
    return None if is_empty else digest.hexdigest()
