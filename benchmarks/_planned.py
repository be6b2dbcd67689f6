"""The peak memory that prefopt foresees for a contender, to be set beside the one that is measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from benchmarks._models import DTYPES, build_base, recompute_layers, with_adapters
from benchmarks._ours import Way
from benchmarks._task import Task
from prefopt.data.packs.pack import pack
from prefopt.memory import Sample, Target, plan_model_memory


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
    model = _outline(task, way)
    reference: Any = "adapter_off" if task.model.rank else model
    found = plan_model_memory(
        model,
        Sample.of(batch),
        _target(task, way),
        references=[] if way.is_cached else [reference],
        accumulates=any(len(packs) > 1 for packs in steps),
    )
    return found.allocated(batch.num_tokens) / 2**20


def _outline(task: Task, way: Way) -> Any:
    """Build the model to train without memory for its weights."""
    model = build_base(task.model, "meta", task.seed)
    if task.model.rank:
        with torch.device("meta"):
            model = with_adapters(model, task.model, seed=task.seed, is_start=True)
    if way.recomputes:
        recompute_layers(model)
    return model


def _target(task: Task, way: Way) -> Target:
    autocast = torch.bfloat16 if task.model.autocast else None
    found = Target.of(task.device, DTYPES[task.model.dtype], way.attention, autocast)
    return found if way.head == "auto" else replace(found, head=way.head)
