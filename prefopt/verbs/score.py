"""The verb ``score``: log-probs and lengths of every answer of every row under a model."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from prefopt.assemble.data import cache_folder, source_of
from prefopt.assemble.model import Start, default_device, policy_of, tokenizer_of
from prefopt.assemble.scoring import scoring_recipe
from prefopt.data.packs.plan import Plan
from prefopt.data.packs.steps import PlannedSteps
from prefopt.data.prepare import prepare
from prefopt.data.rows.loss_needs import Needs
from prefopt.errors import DataError, is_misnamed, storage_error, user_errors, writing
from prefopt.recipe import Recipe
from prefopt.types import PackedBatch, SeqLogps
from prefopt.verbs.progress import Display

MAX_BAD = 0.01
"""Share of bad rows beyond which nothing is scored, as in a recipe; they are named beside the output file."""


def run(
    model: str,
    data: str,
    out: str | Path,
    *,
    split: str | None = None,
    adapter: str | None = None,
    dtype: str = "float32",
    chat_template: str | None = None,
    max_tokens: int | None = None,
    tokens_per_batch: int = 16384,
    overwrite: bool = False,
) -> Path:
    """Score every answer of ``data`` and write one JSON line per row, in the order of the rows.

    Each line is ``{"row_id", "origin", "logps": [nats per answer], "lengths": [scored tokens]}``.

    Args:
        model: hub id, local folder or builtin:tiny.
        data: a file, a hub id or builtin data, in any known layout.
        out: the file to write.
        split: split of a hub data set.
        adapter: path or hub id of an adapter on top of the model.
        dtype: of the weights, float32 or bfloat16.
        chat_template: in place of the tokenizer's own.
        max_tokens: cut longer sequences as training would; None scores them whole.
        tokens_per_batch: most tokens in one forward pass.
        overwrite: replace ``out`` if it exists.

    Raises:
        PrefoptError: the model or the data cannot be used, or ``out`` exists or cannot be written.
    """
    target = Path(out)
    _claim(target, overwrite)
    with user_errors():
        return _score(
            target,
            scoring_recipe(
                model, data, split=split, adapter=adapter, dtype=dtype, chat_template=chat_template
            ),
            max_tokens,
            tokens_per_batch,
            overwrite,
        )


def _score(
    target: Path, recipe: Recipe, max_tokens: int | None, tokens_per_batch: int, overwrite: bool
) -> Path:
    """Score what a recipe names, in the order: rows, model, file."""
    tokenizer = tokenizer_of(recipe.model)
    prepared = prepare(
        [source_of(recipe.data[0])],
        tokenizer,
        max_tokens=max_tokens,
        truncate="keep_start",
        on_identical="keep",
        on_tie="keep",
        needs=Needs(structure=None),
        chat_template=recipe.model.chat_template,
        cache_dir=cache_folder() / "tokenized",
    )
    table = prepared.table
    quarantine = target.with_name(f"{target.name}.quarantine.jsonl")
    with writing(quarantine):
        prepared.report.write_quarantine(quarantine)
    prepared.report.enforce(MAX_BAD)
    sizes = table.sizes(share_prompts=True)
    if int(sizes.tokens.max()) > tokens_per_batch:
        raise DataError(
            f"--tokens-per-batch: {tokens_per_batch} is less than the {int(sizes.tokens.max())} tokens of the "
            f"longest row ({table.origin(int(sizes.tokens.argmax()))}). Raise it, or give --max-tokens."
        )
    plan = Plan(
        sizes=sizes, units_per_step=256, tokens_per_batch=tokens_per_batch, unit="responses", shuffle=False
    )
    policy = policy_of(Start.of(recipe))
    largest = max(int(ids.max()) for ids in (table.prompt_ids, table.response_ids))
    policy.check_fits(largest, int(sizes.longest.max()))
    policy.model.eval()
    policy.model.to(default_device())
    policy.self_check()
    with Display(len(table), what="rows") as display:
        for line in prepared.report.lines():
            display.say(line)
        _write(target, _lines(policy, PlannedSteps(plan, table), display), overwrite)
        display.say(f"{target}: {len(table):,} rows scored")
    return target


def _claim(target: Path, overwrite: bool) -> None:
    """Make sure, before any work, that the file can be written."""
    if target.is_dir():
        raise DataError(f"--out: {target} is a folder. Give a file.")
    if target.exists() and not overwrite:
        raise DataError(f"{target}: the file exists. Add --overwrite, or write elsewhere.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if not is_misnamed(error):
            raise storage_error(error, target.parent) from error
        raise DataError(f"--out: {target} cannot be written ({error.strerror or error}).") from None


@torch.no_grad()
def _lines(policy: Any, steps: PlannedSteps, display: Display) -> Iterator[dict[str, Any]]:
    device = next(policy.model.parameters()).device
    for step in steps.stream(0, len(steps)):
        rows = [row for batch in step.packs for row in _rows(batch, policy(batch.to(device)))]
        # packs are filled longest first; the file keeps the order of the data
        yield from sorted(rows, key=lambda row: int(row["row_id"]))
        display.advance(len(rows))


def _rows(batch: PackedBatch, logps: SeqLogps) -> Iterator[dict[str, Any]]:
    totals: Sequence[float] = logps.total.tolist()
    for group, (row_id, origin) in enumerate(zip(batch.row_ids, batch.origins, strict=True)):
        answers = slice(batch.groups[group], batch.groups[group + 1])
        yield {
            "row_id": row_id,
            "origin": origin,
            "logps": totals[answers],
            "lengths": list(batch.lengths[answers]),
        }


def _write(target: Path, lines: Iterator[dict[str, Any]], overwrite: bool) -> None:
    """Write all lines, then put the file in place, so that a stopped run leaves no half file."""
    temporary = target.with_name(f".{target.name}.part-{uuid.uuid4().hex[:8]}")
    try:
        with writing(target), temporary.open("w", encoding="utf-8") as file:
            for line in lines:
                file.write(json.dumps(line) + "\n")
        _claim(target, overwrite)  # another process may have written it meanwhile
        with writing(target):
            os.replace(temporary, target)
    finally:
        with suppress(OSError):
            temporary.unlink()
