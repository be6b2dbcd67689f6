"""Arrange one pack's log-probs as a loss wants them, and collect the tensors its signature names."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from prefopt.errors import RecipeError
from prefopt.ragged import on_device
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
    group = next(g for g in range(len(batch.row_ids)) if batch.groups[g + 1] > response)
    return batch.origins[group]


def inputs_of(names: Iterable[str], structure: str, batch: PackedBatch, totals: Totals) -> dict[str, Tensor]:
    """Return the tensors, of ``types.INPUTS``, that a loss's signature names.

    Raises:
        RecipeError: the data lacks a column that the loss needs.
    """
    return {name: _input(name, structure, batch, totals) for name in names}


def _input(name: str, structure: str, batch: PackedBatch, totals: Totals) -> Tensor:
    match name:
        case "pair_margin":
            return batch.pair_margin
        case "mean_chosen_length":
            mean = totals.chosen_tokens / num_units(structure, totals)
            return torch.full((), mean, dtype=torch.float32, device=batch.input_ids.device)
        case "chosen_score" | "rejected_score":
            if batch.scores is None:
                raise RecipeError(
                    f"{batch.origins[0]}: the loss needs '{name}', but the data has no scores. "
                    f"Map a score column, or choose a loss without one."
                )
            side = 0 if name == "chosen_score" else 1
            index = on_device([pair[side] for pair in batch.pairs], batch.scores.device, torch.int64)
            return batch.scores.index_select(0, index)
    raise AssertionError(f"types.INPUTS names '{name}', which nothing supplies")
