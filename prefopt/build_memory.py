"""From a recipe to the plan of its memory: the models are built from their configurations alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from prefopt import demo
from prefopt.build_loss import BoundLoss
from prefopt.build_model import DTYPES, REFERENCE_ADAPTER, ready, reference_name, source_of, with_lora
from prefopt.errors import RecipeError
from prefopt.memory import Machine, MemoryPlan, Ranks, Sample, plan_of
from prefopt.policy import Policy
from prefopt.policy.load import load_config, skeleton, skeleton_adapter
from prefopt.recipe import Recipe, ReferenceModel


def plan_memory(
    recipe: Recipe,
    loss: BoundLoss,
    sample: Sample,
    machine: Machine,
    ranks: Ranks,
    *,
    accumulates: bool = True,
) -> MemoryPlan:
    """Plan the memory of the recipe's run on one rank; downloads configurations and nothing else.

    Args:
        recipe: what is trained, and what it is compared with.
        loss: says whether a reference is needed, and which statistics.
        sample: what packs look like.
        machine: which kernels run, and in which precision.
        ranks: how many processes share the work, and what of it.
        accumulates: steps have several packs.

    Raises:
        ModelError: a model cannot be found, or cannot be run without numbers.
        RecipeError: the memory of the attention asked for is not planned.
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
        machine,
        ranks=ranks,
        reference=_reference(recipe, model) if loss.contract.needs_reference else None,
        stats=loss.contract.policy_stats,
        reference_stats=loss.contract.reference_stats,
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
        if reference_name(recipe) in ("initial", "cached"):
            skeleton_adapter(model, settings.adapter, key="model.adapter", name=REFERENCE_ADAPTER)
    return ready(recipe, base, model)


def _reference(recipe: Recipe, model: nn.Module) -> nn.Module | str | None:
    """Return what scores beside the policy in every step, in the words of ``plan_of``."""
    match reference_name(recipe):
        case "path":
            assert isinstance(recipe.reference, ReferenceModel)
            given = recipe.reference
            other = _skeleton(
                given.path, "reference.path", DTYPES[recipe.model.dtype], revision=given.revision
            )
            if given.adapter is not None:
                other = skeleton_adapter(other, given.adapter, key="reference.adapter")
            return Policy(other).model
        case "adapter_off":
            return "adapter_off"
        case "initial" if recipe.model.adapter is not None:
            return "adapter"
        case "initial":
            return "adapter_off" if recipe.model.lora is not None else model
    return None


def _skeleton(path: str, key: str, dtype: torch.dtype, **source: Any) -> Any:
    if demo.is_builtin(path):
        with torch.device("meta"):
            return demo.build_model(path).to(dtype)  # type: ignore[arg-type]
    config = load_config(path, key=key, **source)
    return skeleton(config, dtype=dtype, trust_remote_code=bool(source.get("trust_remote_code")))
