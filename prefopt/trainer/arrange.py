"""Arrange one pack's log-probs as a loss wants them, and collect the tensors its signature names."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from prefopt.errors import RecipeError
from prefopt.ragged import on_device
from prefopt.types import (
    BATCH_STATS,
    ROLES,
    LabelledLogps,
    ListLogps,
    PackedBatch,
    PairLogps,
    SeqLogps,
    Totals,
)

Values = PairLogps | LabelledLogps | ListLogps | SeqLogps

UNIT_NAMES = {"pairs": "pairs", "responses": "answers", "sides": "answers", "lists": "groups"}
"""What the units of a loss are called in the log, by its structure."""


def arrange(structure: str, batch: PackedBatch, logps: SeqLogps, roles: Sequence[str] = ()) -> Values:
    """Return the log-probs of a pack's responses grouped into the units of a loss.

    Responses of other roles than "answer" are no units; they are found under ``others``.

    Args:
        structure: of the loss.
        batch: the pack that was scored.
        logps: of all its responses.
        roles: which the loss cannot do without.

    Raises:
        RecipeError: the pack holds no responses of such a role, or an answer of which nobody says
            whether it is desirable.
    """
    others = {role: _of_role(batch, role) for role in dict.fromkeys((*roles, *_roles_in(batch)))}
    if missing := [role for role, found in others.items() if not found]:
        raise _missing(missing[0], batch, f"{missing[0]} responses")
    answers = _of_role(batch, "answer")
    match structure:
        case "pairs":
            return PairLogps(
                chosen=logps.take([chosen for chosen, _ in batch.pairs]),
                rejected=logps.take([rejected for _, rejected in batch.pairs]),
                others={role: logps.take(_of_pairs(batch, role, at)) for role, at in others.items()},
            )
        case "sides":
            return LabelledLogps(
                answers=logps.take(answers),
                is_desirable=_is_desirable(batch, answers),
                others={role: logps.take(found) for role, found in others.items()},
            )
        case "lists":
            sizes = Counter(_group_of(batch, response) for response in answers)
            return ListLogps(logps.take(answers), tuple(sizes[group] for group in range(len(batch.row_ids))))
        case "responses":
            return logps.take(answers)
    raise AssertionError(f"no loss has the structure {structure}")


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


def num_units(structure: str, totals: Totals) -> int:
    """Return how many units the loss of one optimizer step is averaged over."""
    match structure:
        case "pairs":
            return totals.pairs
        case "lists":
            return totals.groups
    return totals.responses


def unit_weights(structure: str, batch: PackedBatch, like: Tensor) -> Tensor:
    """Return the weight of every unit, [U]: that of the data for pairs and lists, zero in a ghost."""
    if structure == "pairs":
        return batch.pair_weight.to(like.dtype)
    if structure == "lists" and batch.group_weight is not None:
        return batch.group_weight.to(like.dtype)
    return torch.zeros_like(like) if batch.is_ghost else torch.ones_like(like)


def origin_of_unit(structure: str, batch: PackedBatch, unit: int) -> str:
    """Return the data row that a unit of a pack came from."""
    return batch.origins[_group_of_units(structure, batch)[unit]]


def _group_of_units(structure: str, batch: PackedBatch) -> list[int]:
    match structure:
        case "pairs":
            return [_group_of(batch, chosen) for chosen, _ in batch.pairs]
        case "lists":
            return list(range(len(batch.row_ids)))
    return [_group_of(batch, response) for response in _of_role(batch, "answer")]


def _group_of(batch: PackedBatch, response: int) -> int:
    return bisect_right(batch.groups, response) - 1


def _roles_in(batch: PackedBatch) -> list[str]:
    return [role for role in ROLES[1:] if role in (batch.roles or ())]


def _of_role(batch: PackedBatch, role: str) -> list[int]:
    """Return which responses of a pack have a role."""
    if batch.roles is None:
        return list(range(len(batch.lengths))) if role == "answer" else []
    return [response for response, own in enumerate(batch.roles) if own == role]


def _of_pairs(batch: PackedBatch, role: str, found: list[int]) -> list[int]:
    """Return the response of a role that belongs to each pair: the one of its row."""
    at = {_group_of(batch, response): response for response in reversed(found)}
    groups = _group_of_units("pairs", batch)
    lacking = next((group for group in groups if group not in at), None)
    if lacking is not None:
        raise RecipeError(
            f"{batch.origins[lacking]}: the row has no {role}, but others have one and the loss reads it. "
            f"Give every row one."
        )
    return [at[group] for group in groups]


def _is_desirable(batch: PackedBatch, answers: list[int]) -> Tensor:
    """Return which answers are desirable, bool [S]: by their labels, or chosen in a pair."""
    if batch.labels is not None:
        return _select(batch.labels, answers)
    chosen, rejected = ({pair[side] for pair in batch.pairs} for side in (0, 1))
    for response in answers:
        if (response in chosen) == (response in rejected):
            raise RecipeError(
                f"{batch.origins[_group_of(batch, response)]}: the loss learns from desirable and undesirable "
                f"answers, but an answer is {'both' if response in chosen else 'neither'}. Give it a label."
            )
    return on_device([response in chosen for response in answers], batch.input_ids.device, torch.bool)


def _select(values: Tensor, index: list[int]) -> Tensor:
    """Return the rows ``index`` of a tensor; all of them in order cost nothing."""
    if index == list(range(len(values))):
        return values
    return values.index_select(0, on_device(index, values.device, torch.int64))


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
    names: Iterable[str], structure: str, batch: PackedBatch, totals: Totals, seed: int = 0
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
            return _select(batch.scores, _of_role(batch, "answer"))
        case "prompt_embedding":
            if batch.prompt_embedding is None:
                raise _missing(name, batch, "'prompt_embedding' column")
            return _select(batch.prompt_embedding, _group_of_units(structure, batch))
        case "mean_chosen_length":
            mean = totals.chosen_tokens / num_units(structure, totals)
            return torch.full((), mean, dtype=torch.float32, device=batch.input_ids.device)
        case "desirable_share":
            share = totals.desirable / totals.responses
            return torch.full((), share, dtype=torch.float32, device=batch.input_ids.device)
        case "chosen_score" | "rejected_score":
            if batch.scores is None:
                raise _missing(name, batch, "scores")
            side = 0 if name == "chosen_score" else 1
            return _select(batch.scores, [pair[side] for pair in batch.pairs])
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
    return on_device(seeds, batch.input_ids.device, torch.int64)
