"""The tensors that a loss's signature names, taken from a pack and from the totals of its step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from prefopt.ragged import on_device
from prefopt.structures import Structure
from prefopt.structures.packs import lacks, of_role, row_of, take_rows
from prefopt.types import BATCH_STATS, PackedBatch, Totals


def batch_stats(names: Iterable[str], batch: PackedBatch) -> dict[str, Tensor]:
    """Return those of ``types.BATCH_STATS`` that are among ``names``, each [M]."""
    found = {}
    for name in BATCH_STATS:
        if name in names:
            found[name] = batch.target_ids if name == "token_id" else _token_weights(batch)
    return found


def _token_weights(batch: PackedBatch) -> Tensor:
    if batch.token_weights is not None:
        return batch.token_weights
    return torch.ones(batch.target_ids.shape, dtype=torch.float32, device=batch.target_ids.device)


_COLUMNS = {
    "soft_label": "pair_soft_label",
    "answer_score": "scores",
    "chosen_score": "scores",
    "rejected_score": "scores",
    "prompt_embedding": "prompt_embedding",
}
"""Where a batch keeps what not all data has, by the name of the input."""


def wanted_inputs(inputs: Mapping[str, bool], batch: PackedBatch) -> list[str]:
    """Return the names of the inputs that a loss requires, and of those it can do without but the data has."""
    return [
        name
        for name, is_required in inputs.items()
        if is_required or name not in _COLUMNS or getattr(batch, _COLUMNS[name]) is not None
    ]


def inputs_of(
    names: Iterable[str], structure: Structure, batch: PackedBatch, totals: Totals, seed: int = 0
) -> dict[str, Tensor]:
    """Return the tensors, of ``types.INPUTS``, that a loss's signature names.

    Args:
        names: as the signature has them.
        structure: of the loss.
        batch: the pack that is scored.
        totals: of the optimizer step.
        seed: of this optimizer step, from which every pair's own seed is drawn.

    Raises:
        RecipeError: the data lacks a column that the loss needs.
    """
    return {name: _input(name, structure, batch, totals, seed) for name in names}


def _input(name: str, structure: Structure, batch: PackedBatch, totals: Totals, seed: int) -> Tensor:
    match name:
        case "pair_margin":
            return batch.pair_margin
        case "soft_label":
            if batch.pair_soft_label is None:
                raise lacks(name, batch, "'soft_label' column")
            return batch.pair_soft_label
        case "pair_seed":
            return _pair_seeds(batch, seed)
        case "answer_score":
            if batch.scores is None:
                raise lacks(name, batch, "scores")
            return take_rows(batch.scores, of_role(batch, "answer"))
        case "prompt_embedding":
            if batch.prompt_embedding is None:
                raise lacks(name, batch, "'prompt_embedding' column")
            return take_rows(batch.prompt_embedding, structure.rows_of_units(batch))
        case "mean_chosen_length":
            mean = totals.chosen_tokens / structure.units(totals)
            return torch.full((), mean, dtype=torch.float32, device=batch.input_ids.device)
        case "desirable_share":
            share = totals.desirable / totals.responses
            return torch.full((), share, dtype=torch.float32, device=batch.input_ids.device)
        case "chosen_score" | "rejected_score":
            if batch.scores is None:
                raise lacks(name, batch, "scores")
            side = 0 if name == "chosen_score" else 1
            return take_rows(batch.scores, [pair[side] for pair in batch.pairs])
    raise AssertionError(f"types.INPUTS names '{name}', which nothing supplies")


def _pair_seeds(batch: PackedBatch, seed: int) -> Tensor:
    """Draw a seed for every pair from its row and its place there, so that no split of the step matters."""
    seeds: list[int] = []
    for chosen, rejected in batch.pairs:
        row = row_of(batch, chosen)
        first = batch.groups[row]
        key = np.array([seed, batch.row_ids[row], chosen - first, rejected - first], dtype="<i8").tobytes()
        seeds.append(int.from_bytes(blake2b(key, digest_size=8).digest(), "little") >> 1)
    return on_device(seeds, batch.input_ids.device, torch.int64)
