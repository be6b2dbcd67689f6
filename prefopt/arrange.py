"""Arrange one pack's log-probs as a loss wants them, and collect the tensors its signature names."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from prefopt.errors import RecipeError
from prefopt.types import PackedBatch, PairLogps, SeqLogps, Totals

Values = PairLogps | SeqLogps


def arrange(structure: str, batch: PackedBatch, logps: SeqLogps) -> Values:
    """Return the log-probs of a pack's responses grouped into the units of a loss."""
    match structure:
        case "pairs":
            return PairLogps(
                chosen=logps.take([chosen for chosen, _ in batch.pairs]),
                rejected=logps.take([rejected for _, rejected in batch.pairs]),
            )
        case "responses":
            return logps
    raise AssertionError(f"no loss has the structure {structure}")


def num_units(structure: str, totals: Totals) -> int:
    """Return how many units the loss of one optimizer step is averaged over."""
    return totals.pairs if structure == "pairs" else totals.responses


def unit_weights(structure: str, batch: PackedBatch, like: Tensor) -> Tensor:
    """Return the weight of every unit, [U]: that of the data for pairs, zero in a ghost."""
    if structure == "pairs":
        return batch.pair_weight.to(like.dtype)
    return torch.zeros_like(like) if batch.is_ghost else torch.ones_like(like)


def origin_of_unit(structure: str, batch: PackedBatch, unit: int) -> str:
    """Return the data row that a unit of a pack came from."""
    response = batch.pairs[unit][0] if structure == "pairs" else unit
    return batch.origins[_group_of(batch, response)]


def _group_of(batch: PackedBatch, response: int) -> int:
    return bisect_right(batch.groups, response) - 1


def inputs_of(
    names: Mapping[str, bool], structure: str, batch: PackedBatch, totals: Totals, seed: int = 0
) -> dict[str, Tensor]:
    """Return the tensors, of ``types.INPUTS``, that a loss's signature names.

    Args:
        names: as the signature has them, and whether it requires each.
        structure: of the loss.
        batch: the pack that is scored.
        totals: of the optimizer step.
        seed: of this optimizer step, from which every pair's own seed is drawn.

    Raises:
        RecipeError: the data lacks a column that the loss requires.
    """
    given = [name for name, is_required in names.items() if is_required or _has(batch, name)]
    return {name: _input(name, structure, batch, totals, seed) for name in given}


_COLUMNS = {
    "soft_label": "pair_soft_label",
    "answer_score": "scores",
    "chosen_score": "scores",
    "rejected_score": "scores",
    "prompt_embedding": "prompt_embedding",
}
"""Where a batch keeps what not all data has, by the name of the input."""


def _has(batch: PackedBatch, name: str) -> bool:
    return name not in _COLUMNS or getattr(batch, _COLUMNS[name]) is not None


def _input(name: str, structure: str, batch: PackedBatch, totals: Totals, seed: int) -> Tensor:
    match name:
        case "pair_margin":
            return batch.pair_margin
        case "soft_label":
            if batch.pair_soft_label is None:
                raise _missing(name, batch, "'soft_label' column")
            return batch.pair_soft_label
        case "pair_seed":
            return _pair_seeds(batch, seed)
        case "answer_score":
            if batch.scores is None:
                raise _missing(name, batch, "scores")
            return batch.scores
        case "prompt_embedding":
            if batch.prompt_embedding is None:
                raise _missing(name, batch, "'prompt_embedding' column")
            return batch.prompt_embedding[[_group_of(batch, chosen) for chosen, _ in batch.pairs]]
        case "mean_chosen_length":
            mean = totals.chosen_tokens / num_units(structure, totals)
            return torch.tensor(mean, dtype=torch.float32, device=batch.input_ids.device)
        case "chosen_score" | "rejected_score":
            if batch.scores is None:
                raise _missing(name, batch, "scores")
            side = 0 if name == "chosen_score" else 1
            index = torch.tensor([pair[side] for pair in batch.pairs], device=batch.scores.device)
            return batch.scores.index_select(0, index)
    raise AssertionError(f"types.INPUTS names '{name}', which nothing supplies")


def _missing(name: str, batch: PackedBatch, what: str) -> RecipeError:
    return RecipeError(
        f"{batch.origins[0]}: the loss needs '{name}', but the data has no {what}. "
        f"Map a column to it, or choose a loss without one."
    )


def _pair_seeds(batch: PackedBatch, seed: int) -> Tensor:
    """Draw a seed for every pair from its row and its place there, so that no split of the step matters."""
    seeds: list[int] = []
    for chosen, rejected in batch.pairs:
        group = _group_of(batch, chosen)
        first = batch.groups[group]
        key = np.array([seed, batch.row_ids[group], chosen - first, rejected - first], dtype="<i8").tobytes()
        seeds.append(int.from_bytes(blake2b(key, digest_size=8).digest(), "little") >> 1)
    return torch.tensor(seeds, dtype=torch.int64)
