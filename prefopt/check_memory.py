"""The part of the verb ``check`` that says whether a run fits into memory, and what to change if not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from prefopt import build_model
from prefopt.build_loss import BoundLoss
from prefopt.build_memory import plan_memory
from prefopt.data.pack import pack
from prefopt.data.plan import Plan
from prefopt.data.table import GroupTable
from prefopt.errors import ModelError, RecipeError
from prefopt.memory import GIB, MemoryPlan, Ranks, Sample, Target
from prefopt.recipe import Recipe

_SAMPLED_GROUPS = 64
_ROUND = 128
"""Budgets are suggested in multiples of so many tokens."""


@dataclass(frozen=True, slots=True)
class Device:
    """What the run is planned for."""

    kind: str  # cuda or cpu
    memory: int | None  # bytes; None where nobody has said
    name: str

    @classmethod
    def find(cls, gibibytes: float | None) -> Device:
        """Take a GPU of the memory that was asked for, else the first one here, else the CPU.

        Args:
            gibibytes: of a GPU that need not be here.
        """
        if gibibytes is not None:
            return cls("cuda", round(gibibytes * GIB), f"a GPU with {gibibytes:g} GiB")
        if not torch.cuda.is_available():
            return cls("cpu", None, "the CPU")
        found = torch.cuda.get_device_properties(0)
        return cls("cuda", found.total_memory, f"{found.name} with {_gib(found.total_memory)} GiB")


def show_memory(
    console: Console,
    recipe: Recipe,
    variant: Callable[[Sequence[str]], Recipe],
    loss: BoundLoss,
    table: GroupTable,
    plan: Plan,
    device: Device,
    ranks: Ranks,
) -> None:
    """Print what the memory of one rank goes to, the largest budget that fits, and what to change if none does.

    Args:
        console: printed to.
        recipe: the run.
        variant: returns the recipe with further overrides.
        loss: says which reference and statistics are needed.
        table: groups to train on, which the memory of a pack is judged by.
        plan: says how many packs a step has.
        device: what the run is planned for.
        ranks: how many processes share the work.
    """
    console.rule("memory")
    sample = sample_of(table, recipe.batch.share_prompts)
    accumulates = any(len(plan.step(at).ranks[0]) > 1 for at in range(min(8, plan.num_steps(1))))

    def planned(recipe: Recipe) -> MemoryPlan:
        return plan_memory(recipe, loss, sample, target_of(recipe, device), ranks, accumulates=accumulates)

    try:
        memory = planned(recipe)
    except (ModelError, RecipeError) as error:
        console.print(f"not planned: {error}", markup=False)
        return
    budget, smallest = recipe.batch.tokens_per_batch, int(plan.sizes.tokens.max())
    console.print(_grid(memory, budget, device, ranks))
    for line in _verdict(memory, budget, smallest, device):
        console.print(line, markup=False)
    if recipe.model.compile:
        console.print("layers are planned as they are written; compiled ones keep less", markup=False)
    if device.memory is not None and memory.total(budget) > device.memory:
        for line in _ways_out(recipe, variant, planned, smallest, device.memory):
            console.print(line, markup=False)


def sample_of(table: GroupTable, share_prompts: bool) -> Sample:
    """Take groups from all over the data as a sample of what packs look like."""
    at = np.unique(np.linspace(0, len(table) - 1, min(len(table), _SAMPLED_GROUPS)).astype(np.int64))
    return Sample.of(pack([table[int(index)] for index in at], share_prompts=share_prompts))


def target_of(recipe: Recipe, device: Device) -> Target:
    """Say which kernels a run takes on a device; a GPU that is not here counts as a new one."""
    settings, dtypes = recipe.model, build_model.DTYPES
    autocast = dtypes[settings.autocast] if settings.autocast else None
    if device.kind == "cuda" and not torch.cuda.is_available():
        return Target(attention=settings.attention, autocast=autocast)
    return Target.of(device.kind, dtypes[settings.dtype], settings.attention, autocast)


def _grid(memory: MemoryPlan, budget: int, device: Device, ranks: Ranks) -> Table:
    where = device.name if ranks.count == 1 else f"each of {ranks.count} GPUs like {device.name}"
    how = "" if ranks.count == 1 else ", weights spread by FSDP2" if ranks.is_sharded else ", DDP"
    grid = Table("what", "GiB", title=f"a pack of {budget:,} tokens on {where}{how}")
    grid.columns[1].justify = "right"
    parts = memory.parts(budget)
    for name, size in parts.items():
        grid.add_row(name, _gib(size))
    grid.add_section()
    grid.add_row("all", _gib(sum(parts.values())))
    return grid


def _verdict(memory: MemoryPlan, budget: int, smallest: int, device: Device) -> Iterator[str]:
    if device.memory is None:
        yield (
            "There is no GPU here, so no limit is known: these are the tensors of a run on the CPU. "
            "Give --gpu-memory GIB to plan for a GPU."
        )
        return
    most = memory.largest_budget(device.memory)
    fits = memory.total(budget) <= device.memory
    yield (
        f"batch.tokens_per_batch={budget}: {_gib(memory.total(budget))} of {_gib(device.memory)} GiB, "
        f"so it {'fits' if fits else 'does not fit'}"
    )
    if most >= smallest:
        yield f"largest batch.tokens_per_batch that fits: {_rounded(most, smallest)}"
    else:
        yield (
            f"no batch.tokens_per_batch fits: the largest group alone has {smallest} tokens, and at most {most} fit. "
            f"batch.max_tokens bounds it."
        )


def _ways_out(
    recipe: Recipe,
    variant: Callable[[Sequence[str]], Recipe],
    planned: Callable[[Recipe], MemoryPlan],
    smallest: int,
    limit: int,
) -> Iterator[str]:
    """Add one change after the other until the recipe fits, and say what each brings."""
    changes: list[str] = []
    for change in _changes(recipe):
        changes += change
        memory = planned(variant(changes))
        total = memory.total(recipe.batch.tokens_per_batch)
        line = f"with {' '.join(changes)}: {_gib(total)} GiB"
        most = memory.largest_budget(limit)
        if total > limit and most >= smallest:
            line += f", or batch.tokens_per_batch={_rounded(most, smallest)}"
        yield line
        if total <= limit:
            return


def _changes(recipe: Recipe) -> Iterator[list[str]]:
    """Name what saves memory, the cheapest first."""
    if not recipe.model.checkpointing:
        yield ["model.checkpointing=true"]
    is_trained_whole = recipe.model.lora is None and recipe.model.adapter is None
    if is_trained_whole and build_model.references_of(recipe) == ("initial",):
        yield ["reference=cached"]
    if is_trained_whole:
        dtype = [] if recipe.model.dtype == "bfloat16" else ["model.dtype=bfloat16", "model.autocast=null"]
        yield ["model.lora={rank: 16}", *dtype]


def _rounded(tokens: int, smallest: int) -> int:
    return max(smallest, tokens // _ROUND * _ROUND)


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}" if size < 100 * GIB else f"{size / GIB:.1f}"
