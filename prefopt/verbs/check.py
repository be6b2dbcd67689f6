"""The verb ``check``: everything that can be known about a run before it starts, on one screen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from prefopt.assemble.data import Data, data_of
from prefopt.assemble.fit import filled, loss_of
from prefopt.assemble.loss import BoundLoss
from prefopt.assemble.model import check_length, check_model, tokenizer_of
from prefopt.assemble.plan import num_steps, plan_of
from prefopt.assemble.references import check_references, describe_references, needed
from prefopt.data.packs.plan import Plan
from prefopt.data.tokens.table import GroupTable
from prefopt.memory import Ranks
from prefopt.recipe import Batch, Recipe, load_recipe
from prefopt.run.folder import RunFolder
from prefopt.structures import STRUCTURES, Structure
from prefopt.types import TokenizedGroup
from prefopt.verbs.check_memory import Device, show_memory
from prefopt.verbs.check_scores import warnings
from prefopt.verbs.progress import PlainConsole

_QUANTILES = (0.0, 0.5, 0.9, 0.99, 1.0)
_SHOWN_TOKENS = 400


def run(
    recipe: str | Path,
    overrides: Sequence[str] = (),
    console: Console | None = None,
    *,
    gpu_memory: float | None = None,
    gpus: int = 1,
    fsdp: bool = False,
) -> None:
    """Read the recipe and the data, plan the run and say what was found; trains and loads no weights.

    Args:
        recipe: path of the recipe.
        overrides: ``key.path=value`` each.
        console: printed to; None is the terminal.
        gpu_memory: GiB of the GPU to plan for; None is the first GPU here.
        gpus: how many of them train together, a process each.
        fsdp: the weights are spread over them.

    Raises:
        PrefoptError: what ``train`` would refuse before its first step.
    """
    check(load_recipe(recipe, overrides), console, gpu_memory=gpu_memory, gpus=gpus, fsdp=fsdp)


def check(
    recipe: Recipe,
    console: Console | None = None,
    *,
    gpu_memory: float | None = None,
    gpus: int = 1,
    fsdp: bool = False,
) -> None:
    """Check a loaded recipe; see ``run``."""
    console = console or PlainConsole(highlight=False, soft_wrap=True)
    with recipe.located():
        _check(console, recipe, Device.find(gpu_memory), Ranks(gpus, is_sharded=fsdp))


def _check(console: Console, recipe: Recipe, device: Device, ranks: Ranks) -> None:
    loss = loss_of(recipe)
    check_model(recipe.model)
    tokenizer = tokenizer_of(recipe.model)
    check_references(needed(recipe.references, loss), tokenizer, is_sharded=ranks.is_sharded)
    data = data_of(recipe, tokenizer, loss)
    _show_recipe(console, recipe, loss)
    _show_reports(console, data, recipe.rows.max_bad)
    for warning in warnings(data.train, loss):
        console.print(warning, markup=False)
    structure = STRUCTURES[loss.contract.structure]
    _show_example(console, tokenizer, data.train[0], structure)
    _show_lengths(console, data.train, structure)
    tables = [table for table in (data.train, data.held_out) if table is not None]
    check_length(recipe.model, max(int(table.sizes(True).longest.max()) for table in tables))
    plan = plan_of(recipe.batch, data.train, loss, seed=recipe.seed, world=ranks.count)
    _show_plan(console, recipe.batch, structure, data, plan, num_steps(recipe, plan))
    show_memory(console, recipe, loss, data.train, plan, device, ranks)
    folder = RunFolder(Path(recipe.output))
    state = "holds a run: --resume or --overwrite will be needed" if folder.is_occupied else "is free"
    console.print(f"output {folder.path} {state}", markup=False)


def _show_reports(console: Console, data: Data, max_bad: float) -> None:
    """Say what was found in the rows, and refuse too many bad ones."""
    reports = [report for report in (data.report, data.eval_report) if report is not None]
    for line in (line for report in reports for line in report.lines()):
        console.print(line, markup=False)
    for report in reports:
        report.enforce(max_bad)
    console.print()


def _show_recipe(console: Console, recipe: Recipe, loss: BoundLoss) -> None:
    console.rule("recipe")
    console.print(filled(recipe, loss).to_yaml().rstrip(), markup=False)
    console.print(f"\nloss {loss.describe()}", markup=False)
    for code in loss.code:
        console.print(code.describe(), markup=False)
    console.print(f"reference {describe_references(needed(recipe.references, loss))}", markup=False)
    console.rule("data")


def _show_example(console: Console, tokenizer: Any, group: TokenizedGroup, structure: Structure) -> None:
    """Print one row as the model sees it; tokens that are scored are marked."""
    console.rule(Text(f"example {group.origin}"))
    shown = None
    for index, (response, of) in enumerate(zip(group.responses, group.prompt_of, strict=True)):
        if of != shown:  # prompts that differ stand each before what replies to it
            prompt, shown = group.prompts[of], of
            cut = max(0, len(prompt) - _SHOWN_TOKENS)
            before = f"… {cut} tokens … " if cut else ""
            console.print(Text(before + _decode(tokenizer, prompt[cut:]), style="dim"))
        role = _role(group, index, structure)
        style = {"chosen": "black on green", "rejected": "black on red"}.get(role, "black on yellow")
        weights = None if group.token_weights is None else group.token_weights[index]
        scored = len(response) if weights is None else int((weights != 0).sum())
        line = Text(f"{role}, {scored} scored tokens: ")
        tokens = [_decode(tokenizer, [int(token)]) for token in response[:_SHOWN_TOKENS]]
        for at, token in enumerate(tokens):
            line.append("⟦" if at == 0 else "·", style="dim")
            line.append(token, style="dim" if weights is not None and weights[at] == 0 else style)
        rest = len(response) - len(tokens)
        line.append(f" … {rest} more" if rest else "⟧", style="dim")
        console.print(line)


def _role(group: TokenizedGroup, index: int, structure: Structure) -> str:
    """Name what a response is for."""
    role = group.roles[index] if group.roles is not None else "answer"
    if role != "answer":
        return {"kl": "answer to another prompt"}.get(role, role)
    if group.labels is not None:
        return "desirable" if group.labels[index] else "undesirable"
    if structure.rows.ranks and group.scores is not None:
        return f"score {group.scores[index]:g}"
    chosen = {p.chosen for p in group.preferences}
    if index in chosen:
        return "chosen"
    return "rejected" if index in {p.rejected for p in group.preferences} else role


def _decode(tokenizer: Any, ids: Iterable[int]) -> str:
    return str(tokenizer.decode(list(map(int, ids)), skip_special_tokens=False)).replace("\n", "⏎\n")


def _show_lengths(console: Console, table: GroupTable, structure: Structure) -> None:
    lengths = {"prompt": table.prompt_lengths, "answer": table.response_lengths[table.is_answer]}
    chosen = np.repeat(table.group_responses[:-1], np.diff(table.group_pairs))
    if len(chosen) and not structure.rows.ranks:
        lengths["chosen"] = table.response_lengths[chosen + table.pair_chosen]
        lengths["rejected"] = table.response_lengths[chosen + table.pair_rejected]
    lengths["prompt + longest answer"] = table.sizes(True).longest
    grid = Table("tokens", "count", *(_quantile_name(q) for q in _QUANTILES), "mean", title="lengths")
    for name, values in lengths.items():
        quantiles = np.quantile(values, _QUANTILES, method="nearest")
        grid.add_row(name, f"{len(values):,}", *(f"{int(q):,}" for q in quantiles), f"{values.mean():.1f}")
    console.print(grid)


def _quantile_name(quantile: float) -> str:
    return {0.0: "min", 0.5: "median", 1.0: "max"}.get(quantile, f"{quantile:.0%}")


def _show_plan(
    console: Console, batch: Batch, structure: Structure, data: Data, plan: Plan, steps: int
) -> None:
    console.rule("plan")
    shared = int(data.train.sizes(True).tokens.sum())
    separate = int(data.train.sizes(False).tokens.sum())
    epoch = len(plan.epoch_steps(0))
    lines = [
        f"{len(data.train):,} groups with {_counted(data.train, plan, structure)} to train on"
        + (f", {len(data.held_out):,} groups held out" if data.held_out is not None else ""),
        f"{steps:,} optimizer steps of {batch.pairs_per_step} {structure.unit}, {epoch:,} in an epoch",
        _packing(plan, batch.tokens_per_batch),
        f"tokens per epoch: {shared:,} with each prompt once, {separate:,} with a prompt per answer: "
        f"sharing ratio {separate / shared:.2f}, {1 - shared / separate:.0%} of the tokens saved"
        + ("" if batch.share_prompts else " (switched off by batch.share_prompts: false)"),
        _padding(data.train, batch.pairs_per_step, separate, shared),
    ]
    for line in lines:
        console.print(line, markup=False)


def _counted(table: GroupTable, plan: Plan, structure: Structure) -> str:
    """Say how many units there are; of answers also how many are wanted, which some losses weigh."""
    if structure.rows.ranks:
        return f"{int(table.is_answer.sum()):,} answers"
    text = f"{int(plan.units.sum()):,} {structure.unit}"
    if not structure.rows.labels or table.labels is None:
        return text
    wanted = int(table.labels[table.is_answer].sum())
    return f"{text}, {wanted:,} desirable and {int(table.is_answer.sum()) - wanted:,} undesirable,"


def _packing(plan: Plan, budget: int) -> str:
    steps = [plan.step(index) for index in range(min(50, len(plan.epoch_steps(0))))]
    packs = [sum(int(plan.sizes.tokens[g]) for g in pack) for step in steps for pack in step.ranks[0]]
    return (
        f"{len(packs) / len(steps):.1f} packs per step on one rank, filled to {np.mean(packs) / budget:.0%} of "
        f"{budget:,} tokens (first {len(steps)} steps)"
    )


def _padding(table: GroupTable, pairs_per_step: int, separate: int, shared: int) -> str:
    """Compare with the usual padded batch of whole sequences, drawn in a random order."""
    longest = table.sizes(False).longest
    order = np.random.default_rng(0).permutation(len(longest))
    batches = np.array_split(longest[order], max(1, len(longest) // min(8, pairs_per_step)))
    per_group = np.diff(table.group_responses).mean()
    padded = sum(int(batch.max()) * len(batch) * per_group for batch in batches if len(batch))
    return (
        f"a padded batch of {min(8, pairs_per_step)} would compute {padded / separate:.2f}x the tokens of "
        f"separate sequences, so {padded / shared:.1f}x those of this plan"
    )
