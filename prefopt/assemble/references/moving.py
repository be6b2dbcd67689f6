"""``{name: moving}``: a copy of the policy that follows it."""

from __future__ import annotations

from typing import Any

from torch import nn

from prefopt.assemble.model import policy_of
from prefopt.assemble.references.kind import Kind, Site, Skeletons
from prefopt.errors import RecipeError
from prefopt.recipe.references import Moving
from prefopt.reference import MovingReference


def describe(entry: Moving) -> str:
    """Say when and how far it moves."""
    return f"moving (every {entry.every} steps, mix {entry.mix:g})"


def check(entry: Moving, key: str, tokenizer: Any, *, is_sharded: bool) -> None:
    """Refuse it where ranks hold only shares of the weights.

    Raises:
        RecipeError: they do.
    """
    if is_sharded:
        raise RecipeError(
            f"{key}.name: moving keeps a whole copy of the weights on every rank, but FSDP2 spreads them. "
            f"Launch with plain data parallel, or choose another reference."
        )


def build(entry: Moving, key: str, site: Site) -> MovingReference:
    """Copy the policy as it is at the start of training, adapter included."""
    copy = policy_of(site.start)
    copy.place(site.engine)
    return MovingReference(copy, every=entry.every, mix=entry.mix)


def footprint(entry: Moving, key: str, skeletons: Skeletons) -> nn.Module:
    """Hand over the skeleton of the copy."""
    return skeletons.copy()


KIND: Kind[Moving] = Kind(describe=describe, build=build, footprint=footprint, check=check, is_copy=True)
