"""What prefopt's planner of memory says: how large a batch should fit, and the peak to set beside a measured one."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import torch

from benchmarks.step.models import DTYPES, Model, build_base, recompute_layers, with_adapters
from benchmarks.step.prefopt_contender import Way
from benchmarks.step.task import Task
from prefopt.data.packs.pack import pack
from prefopt.memory import Sample, Target, plan_model_memory

FILLED = 0.85
"""Share of the device's memory that the search for a batch size starts with."""


@cache
def fitting_tokens(model: Model, *, is_cached: bool, recomputes: bool, device_bytes: int) -> int:
    """Return how many tokens of the trunk are expected to fit at once on a GPU, as a start for the search.

    Planned is our own step with the chunked head, for TRL too: a token of the trunk takes about the same in
    every layout and trainer. Where all logits are kept at once less fits, which the search then finds.

    Args:
        model: what is trained.
        is_cached: the reference was scored before training.
        recomputes: layers are computed again in the backward.
        device_bytes: memory of the device.

    Raises:
        ImportError: adapters are asked for, and peft is not there.
    """
    target = Target(head="chunked", autocast=_autocast(model))
    trained = _outline(model, recomputes)
    found = plan_model_memory(trained, target=target, references=_references(model, trained, is_cached))
    return max(1, found.largest_budget(int(FILLED * device_bytes)))


def planned_mib(task: Task, way: Way) -> float | None:
    """Return the most that tensors take while a step runs, MiB.

    None for ways that are the benchmark's own, for the dense attention that tests compare with, and for compiled
    layers, whose memory is the compiler's choice.

    Args:
        task: its ``tokens_per_batch`` is the budget that is planned for.
        way: of ours; its largest pack is planned, with its very segments.
    """
    if way.layout == "padded" or way.head == "logits" or way.compiles or way.attention == "dense":
        return None
    shares = way.layout == "shared"
    plan = task.plan(shares)
    steps = [plan.step(at).ranks[0] for at in range(task.num_steps)]
    tokens = task.table.sizes(shares).tokens
    largest = max((part for packs in steps for part in packs), key=lambda part: int(tokens[list(part)].sum()))
    batch = pack([task.table[at] for at in largest], share_prompts=shares)
    model = _outline(task.model, way.recomputes)
    found = plan_model_memory(
        model,
        Sample.of(batch),
        _target(task, way),
        references=_references(task.model, model, way.is_cached),
        accumulates=any(len(packs) > 1 for packs in steps),
    )
    return found.allocated(batch.num_tokens) / 2**20


def _outline(model: Model, recomputes: bool) -> Any:
    """Build the model to train without memory for its weights."""
    built = build_base(model, "meta", seed=0)
    if model.rank:
        with torch.device("meta"):
            built = with_adapters(built, model, seed=0, is_start=True)
    if recomputes:
        recompute_layers(built)
    return built


def _references(model: Model, trained: Any, is_cached: bool) -> list[Any]:
    if is_cached:
        return []
    return ["adapter_off"] if model.rank else [trained]


def _target(task: Task, way: Way) -> Target:
    found = Target.of(task.device, DTYPES[task.model.dtype], way.attention, _autocast(task.model))
    return found if way.head == "auto" else replace(found, head=way.head)


def _autocast(model: Model) -> torch.dtype | None:
    return torch.bfloat16 if model.autocast else None
