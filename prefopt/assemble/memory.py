"""From a recipe to the plan of its memory: the models are built from their configurations alone."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from prefopt.assemble.loss import BoundLoss
from prefopt.assemble.model import DTYPES, Start
from prefopt.assemble.optim import check_optim
from prefopt.assemble.references import footprints, has_copy, needed
from prefopt.assemble.references.kind import Skeletons
from prefopt.assemble.skeleton import skeleton_of
from prefopt.kernels.prefix_attention.choice import check_planned
from prefopt.memory import MemoryPlan, Ranks, Sample, Target, plan_model_memory
from prefopt.policy import Policy
from prefopt.policy.head import head_of
from prefopt.policy.wrappers import causal_model
from prefopt.recipe import Model, Recipe
from prefopt.reference import own_stats
from prefopt.trainer.weighting import TokenMasks, needs_layers
from prefopt.types import LEARNED_MASKS

BITS = {"nf4": 4 + 8 / 64 + 32 / (64 * 256), "int8": 8.0}
"""Bits of a quantised weight; nf4 with a scale of 8 bits for 64 of them, and of 32 for 256 of those scales."""


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
        RecipeError: the attention or the optimizer asked for cannot run so, or the memory is not planned.
    """
    check_planned(recipe.model.attention, "model.attention:")
    if ranks.is_sharded:
        check_optim(recipe.optim, torch.device(target.device), is_sharded=True)
    start = Start.of(recipe)
    policy = skeleton_of(start)
    model = policy.model
    skeletons = Skeletons(recipe.model, model, copy=lambda: skeleton_of(start).model)
    plan = plan_model_memory(
        model,
        sample,
        target,
        ranks=ranks,
        references=list(footprints(needed(recipe.references, loss), skeletons)),
        stats=loss.contract.policy_stats,
        reference_stats=own_stats(loss.contract.reference_stats),
        layers=needs_layers(loss.contract.policy_stats),
        masks=_masks(loss, policy),
        accumulates=accumulates,
        optimizer=recipe.optim.name,
    )
    if recipe.model.quantization is None:
        return plan
    return _quantized(plan, recipe.model, model, has_copy=has_copy(recipe.references))


def _quantized(plan: MemoryPlan, settings: Model, model: nn.Module, *, has_copy: bool) -> MemoryPlan:
    """Plan the same with the linear layers of the base but its head in few bits, unpacked one by one."""
    core = causal_model(model)
    kept = set(head_of(core).modules())
    assert settings.quantization is not None
    layers = [
        module
        for name, module in core.named_modules()
        if isinstance(module, nn.Linear) and "lora_" not in name and module not in kept
    ]
    bits, compute = BITS[settings.quantization], DTYPES[settings.autocast or settings.dtype]
    saved = sum(round(each.weight.nbytes - each.weight.numel() * bits / 8) for each in layers)
    return replace(
        plan,
        weights=plan.weights - saved,
        references=plan.references - (saved if has_copy and plan.references else 0),
        unpacked=max((each.weight.numel() for each in layers), default=0) * compute.itemsize,
    )


def _masks(loss: BoundLoss, policy: Policy) -> nn.Module | None:
    """Build the module that learns token weights, where the loss asks for them."""
    wanted = set(LEARNED_MASKS) & set(loss.contract.row_stats)
    if not wanted:
        return None
    with torch.device("meta"):
        return TokenMasks(*policy.depth_and_width, wanted)
