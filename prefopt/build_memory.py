"""From a recipe to the plan of its memory: the models are built from their configurations alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from prefopt import demo
from prefopt.build_loss import BoundLoss
from prefopt.build_model import (
    DTYPES,
    REFERENCE_ADAPTER,
    named_references,
    ready,
    references_of,
    source_of,
    with_lora,
)
from prefopt.errors import RecipeError
from prefopt.memory import MemoryPlan, Ranks, Sample, Target, plan_of
from prefopt.policy import Policy
from prefopt.policy.load import load_config, skeleton, skeleton_adapter
from prefopt.recipe import MovingReference, Recipe, ReferenceModel
from prefopt.reference import own_stats


def plan_memory(
    recipe: Recipe, loss: BoundLoss, sample: Sample, target: Target, ranks: Ranks, *, accumulates: bool = True
) -> MemoryPlan:
    """Plan the memory of the recipe's run on one rank; downloads configurations and nothing else.

    Args:
        recipe: what is trained, and what it is compared with.
        loss: says whether a reference is needed, and which statistics.
        sample: what packs look like.
        target: which kernels run, on what.
        ranks: how many processes share the work, and what of it.
        accumulates: steps have several packs.

    Raises:
        ModelError: a model cannot be found, or cannot be run without numbers.
        RecipeError: the attention asked for cannot run on the target, or its memory is not planned.
    """
    if recipe.model.attention == "dense":
        raise recipe.located(
            RecipeError(
                "model.attention: the memory of 'dense' grows with the square of the tokens and is not planned. "
                "Use 'auto'."
            )
        )
    model = skeleton_of(recipe).model
    return plan_of(
        model,
        sample,
        target,
        ranks=ranks,
        references=list(_references(recipe, model)) if loss.contract.needs_reference else [],
        stats=loss.contract.policy_stats,
        reference_stats=own_stats(loss.contract.reference_stats),
        accumulates=accumulates,
    )


def skeleton_of(recipe: Recipe) -> Policy:
    """Build the model to train as ``policy_of`` does, but with weights that take no memory."""
    settings = recipe.model
    base = _skeleton(settings.path, "model.path", DTYPES[settings.dtype], **source_of(settings))
    model = base
    if settings.lora is not None:
        with torch.device("meta"):
            model = with_lora(recipe, base)
    elif settings.adapter is not None:
        model = skeleton_adapter(base, settings.adapter, key="model.adapter", is_trainable=True)
        if not {"initial", "cached"}.isdisjoint(named_references(recipe)):
            skeleton_adapter(model, settings.adapter, key="model.adapter", name=REFERENCE_ADAPTER)
    return ready(recipe, base, model)


def _references(recipe: Recipe, model: nn.Module) -> Iterator[nn.Module | str]:
    """Yield what scores beside the policy in every step, in the words of ``plan_of``."""
    for entry in references_of(recipe):
        match entry:
            case ReferenceModel(cached=False):
                yield _skeleton_of_reference(entry, DTYPES[recipe.model.dtype])
            case MovingReference():
                yield skeleton_of(recipe).model
            case "adapter_off":
                yield "adapter_off"
            case "initial" if recipe.model.adapter is not None:
                yield "adapter"
            case "initial":
                yield "adapter_off" if recipe.model.lora is not None else model


def _skeleton_of_reference(reference: ReferenceModel, dtype: torch.dtype) -> nn.Module:
    model = _skeleton(reference.path, "reference.path", dtype, revision=reference.revision)
    if reference.adapter is not None:
        model = skeleton_adapter(model, reference.adapter, key="reference.adapter")
    return Policy(model).model


def _skeleton(path: str, key: str, dtype: torch.dtype, **source: Any) -> Any:
    if demo.is_builtin(path):
        with torch.device("meta"):
            return demo.build_model(path).to(dtype)  # type: ignore[arg-type]
    config = load_config(path, key=key, **source)
    return skeleton(config, dtype=dtype, trust_remote_code=bool(source.get("trust_remote_code")))
