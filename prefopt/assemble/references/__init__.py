"""From a recipe to what the policy is compared with; each kind that a recipe knows has a file here.

The file ``NAME.py`` holds the ``KIND`` of the reference that a recipe calls NAME.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from prefopt.assemble.loss import BoundLoss
from prefopt.assemble.references.kind import Kind, Site, Skeletons
from prefopt.assemble.sources import WeightSource
from prefopt.recipe.references import KINDS as NAMES
from prefopt.recipe.references import Entry, kind_of
from prefopt.reference import LiveReference, Reference, SeveralReferences
from prefopt.trainer.weighting import TokenMasks
from prefopt.types import LEARNED_MASKS


def _find(name: str) -> Kind[Any]:
    """Return the kind of one name."""
    home = f"{__name__}.{name}"
    assert find_spec(home), f"a recipe knows the reference '{name}', but there is no file {home}"
    found = getattr(import_module(home), "KIND", None)
    assert isinstance(found, Kind), f"{home} holds no KIND"
    return found


KINDS: dict[str, Kind[Any]] = {name: _find(name) for name in NAMES}
"""Every kind that a recipe knows."""


def describe_references(entries: Sequence[Entry]) -> str:
    """Say in a few words what a policy is compared with, if it is."""
    return " and ".join(KINDS[kind_of(entry)].describe(entry) for entry in entries) or "not used"


def needed(entries: Sequence[Entry], loss: BoundLoss) -> Sequence[Entry]:
    """Return those references of a recipe that a loss asks for: all, or none."""
    return entries if loss.contract.needs_reference else ()


def are_live(entries: Sequence[Entry]) -> bool:
    """Tell whether there is one reference, and one with hidden states to hand over."""
    return len(entries) == 1 and KINDS[kind_of(entries[0])].is_live(entries[0])


def lighter(entries: Sequence[Entry]) -> str | None:
    """Return the name of a reference that says the same as the one there is, and holds less memory."""
    return KINDS[kind_of(entries[0])].lighter if len(entries) == 1 else None


def has_copy(entries: Sequence[Entry]) -> bool:
    """Tell whether a copy of the policy is held."""
    return any(KINDS[kind_of(entry)].is_copy for entry in entries)


def reference_sources(entries: Sequence[Entry]) -> Iterator[WeightSource]:
    """Yield where the weights of references come from that are not the policy's."""
    for key, entry in _by_key(entries).items():
        yield from KINDS[kind_of(entry)].sources(entry, key)


def footprints(entries: Sequence[Entry], skeletons: Skeletons) -> Iterator[nn.Module | str]:
    """Yield what scores beside the policy in every step, in the words of ``memory.plan_model_memory``."""
    for key, entry in _by_key(entries).items():
        found = KINDS[kind_of(entry)].footprint(entry, key, skeletons)
        if found is not None:
            yield found


def check_references(entries: Sequence[Entry], tokenizer: Any, *, is_sharded: bool) -> None:
    """Refuse a reference that is missing or cannot be compared with, before data or weights are read.

    Args:
        entries: the references that the loss needs.
        tokenizer: of the policy.
        is_sharded: the weights are spread over ranks.

    Raises:
        ModelError: the reference is missing, of a kind that is not supported, or has another tokenizer.
        RecipeError: a reference that moves while the weights are spread over ranks.
    """
    for key, entry in _by_key(entries).items():
        KINDS[kind_of(entry)].check(entry, key, tokenizer, is_sharded=is_sharded)


def reference_of(entries: Sequence[Entry], site: Site) -> Reference | None:
    """Build what the policy is compared with, if it is.

    A reference of its own weights is proven to score packed rows exactly, as the policy is.

    Args:
        entries: the references that the loss needs; ``check_references`` has let them pass.
        site: what they are built from.

    Raises:
        ModelError: the reference cannot be loaded or scored exactly.
    """
    built = [KINDS[kind_of(entry)].build(entry, key, site) for key, entry in _by_key(entries).items()]
    if not built:
        return None
    return built[0] if len(built) == 1 else SeveralReferences(built)


def masks_of(loss: BoundLoss, reference: Reference | None, seed: int) -> TokenMasks | None:
    """Build the module that learns token weights, where the loss asks for them.

    Args:
        loss: says which masks it reads.
        reference: its hidden states are what the weights are made from.
        seed: draws the first weights.
    """
    wanted = set(LEARNED_MASKS) & set(loss.contract.row_stats)
    if not wanted or not isinstance(reference, LiveReference):
        return None
    torch.manual_seed(seed)
    return TokenMasks(*reference.policy.depth_and_width, wanted)


def _by_key(entries: Sequence[Entry]) -> dict[str, Entry]:
    """Return each reference by the setting that names it."""
    if len(entries) == 1:
        return {"reference": entries[0]}
    return {f"reference.{at}": entry for at, entry in enumerate(entries)}
