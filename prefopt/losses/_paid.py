"""What a loss paid: one value for each unit, with a gradient; anything else is refused by whoever called it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from prefopt.errors import RecipeError
from prefopt.structures import BY_VALUES, UnitLogps
from prefopt.types import LossOutput


def require_paid(name: str, output: Any, policy: UnitLogps, carried: Collection[str]) -> None:
    """Refuse what a loss returned, unless it is one value for each unit: by types and shapes, without a device.

    An average would be spread over the units by whatever is added to it, and a part without a gradient would go
    unnoticed beside another that has one.

    Args:
        name: of the loss.
        output: whatever it returned.
        policy: what it was given.
        carried: the names that its signature carries over.

    Raises:
        RecipeError: says what it returned, and what to return.
    """
    units = len(policy)
    if (found := _wrong(output, units, carried)) is not None:
        raise RecipeError(
            f"loss: {name} returned {found} for {units} {BY_VALUES[type_of(policy)].unit}. Return "
            f"LossOutput(loss) with one value for each, not averaged."
        )
    is_to_learn = torch.is_grad_enabled() and all(part.tokens.requires_grad for part in policy.parts.values())
    if is_to_learn and not output.loss.requires_grad:
        raise RecipeError(
            f"loss: {name} returned a loss without a gradient, so nothing would be learned. "
            f"Compute it from the policy's log-probs, without detach() or no_grad()."
        )


def type_of(policy: UnitLogps) -> type:
    """Return the type of units by which the table of structures knows these; a subclass goes by its parent."""
    return next(kind for kind in BY_VALUES if isinstance(policy, kind))


def _wrong(output: Any, units: int, carried: Collection[str]) -> str | None:
    """Say what a loss returned instead of values of [U]."""
    if not isinstance(output, LossOutput):
        return f"a {type(output).__name__}"
    rewards = {"chosen_reward": output.chosen_reward, "rejected_reward": output.rejected_reward}
    given = {name: reward for name, reward in rewards.items() if reward is not None}
    values: dict[str, Any] = {"loss": output.loss, **given, **output.metrics}
    for name, value in values.items():
        if not isinstance(value, Tensor):
            return f"{name} as a {type(value).__name__}"
        if value.shape != (units,):
            return f"{name} of shape {list(value.shape)}"
    if odd := sorted(output.carried.keys() ^ set(carried)):
        return f"{'a' if odd[0] in output.carried else 'no'} value '{odd[0]}' to carry over, against its signature,"
    if attached := [name for name, value in output.carried.items() if value.requires_grad]:
        return f"'{attached[0]}' to carry over with its gradient"
    return None
