"""Where the responses of a pack stand: by role, and by the row they belong to."""

from __future__ import annotations

from bisect import bisect_right

import torch
from torch import Tensor

from prefopt.errors import RecipeError
from prefopt.ragged import on_device
from prefopt.types import ROLES, PackedBatch


def of_role(batch: PackedBatch, role: str) -> list[int]:
    """Return which responses of a pack have a role."""
    if batch.roles is None:
        return list(range(len(batch.lengths))) if role == "answer" else []
    return [response for response, own in enumerate(batch.roles) if own == role]


def roles_in(batch: PackedBatch) -> list[str]:
    """Return the roles besides "answer" that a pack holds."""
    return [role for role in ROLES[1:] if role in (batch.roles or ())]


def row_of(batch: PackedBatch, response: int) -> int:
    """Return the place, in a pack, of the row that a response belongs to."""
    return bisect_right(batch.groups, response) - 1


def take_rows(values: Tensor, index: list[int]) -> Tensor:
    """Return the rows ``index`` of a tensor; all of them in order cost nothing."""
    if index == list(range(len(values))):
        return values
    return values.index_select(0, on_device(index, values.device, torch.int64))


def weigh_alike(batch: PackedBatch, like: Tensor) -> Tensor:
    """Return the weight 1 for every unit, [U], and 0 in a ghost."""
    return torch.zeros_like(like) if batch.is_ghost else torch.ones_like(like)


def lacks(name: str, batch: PackedBatch, what: str) -> RecipeError:
    """Return the error for data that lacks what a loss needs."""
    return RecipeError(
        f"{batch.origins[0]}: the loss needs '{name}', but the data has no {what}. "
        f"Map a column to it, or choose a loss without one."
    )
