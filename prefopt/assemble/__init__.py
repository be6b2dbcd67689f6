"""From a recipe to the data, the plan and the pieces of a run; models are built in ``build_model``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from prefopt import demo
from prefopt.assemble.loss import BoundLoss, build_loss
from prefopt.assemble.model import DTYPES
from prefopt.assemble.references import are_live
from prefopt.data.packs.plan import Plan
from prefopt.data.packs.steps import PlannedSteps, Reader
from prefopt.data.prepare import Prepared, prepare
from prefopt.data.rows.loss_needs import Needs
from prefopt.data.rows.report import DataReport
from prefopt.data.rows.source import Source
from prefopt.data.tokens.table import GroupTable
from prefopt.engine import Engine
from prefopt.errors import DataError, RecipeError
from prefopt.losses import LossContract
from prefopt.recipe import DataSource, Recipe, parse_recipe
from prefopt.recipe.optim import Optim
from prefopt.recipe.strict_yaml import dump_yaml
from prefopt.reference import Reference, fill_cache, needs_live_reference, own_stats
from prefopt.reference.cache import LogpCache
from prefopt.structures import STRUCTURES
from prefopt.types import LEARNED_MASKS, OTHER_REFERENCES


@dataclass(frozen=True, slots=True)
class Data:
    """Tokenized groups to train on and to evaluate on, and what was found on the way."""

    train: GroupTable
    held_out: GroupTable | None
    report: DataReport
    eval_report: DataReport | None = None


def cache_folder() -> Path:
    """Return where tokenized data is kept between runs: $PREFOPT_CACHE, or ~/.cache/prefopt."""
    if folder := os.environ.get("PREFOPT_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "prefopt"


def filled(recipe: Recipe, loss: BoundLoss) -> Recipe:
    """Return the recipe with what its loss and its reference are where it leaves them out."""
    found: dict[str, Any] = {"loss": dict(loss.settings)}
    if recipe.reference is None and loss.contract.needs_reference:
        (found["reference"],) = recipe.references
    return recipe.model_copy(update=found)


def loss_of(recipe: Recipe) -> BoundLoss:
    """Build the recipe's loss and refuse a reference that it would not use, or a metric that it has not."""
    try:
        loss = build_loss(recipe.loss)
    except RecipeError as error:
        raise recipe.located(error) from None
    _check_metric(recipe, loss.contract)
    reference = recipe.reference
    _check_several(recipe, loss)
    if not loss.contract.needs_reference and reference not in (None, "none"):
        raise recipe.located(
            RecipeError(
                f"reference: {loss.contract.name} uses no reference, so {_short(reference)} has no effect. "
                f"Take the line out."
            )
        )
    if loss.contract.needs_reference and reference == "none":
        raise recipe.located(
            RecipeError(
                f"reference: {loss.contract.name} compares with a reference, but it is none. "
                f"Leave the line out for the start weights, or name one."
            )
        )
    changed = _changed(recipe.optim, ("mask_lr", "mask_weight_decay"))
    if changed and not set(LEARNED_MASKS) & set(loss.contract.row_stats):
        raise recipe.located(
            RecipeError(
                f"optim.{changed[0]}: {loss.contract.name} learns no token weights, so it has no effect. Take the "
                f"line out."
            )
        )
    if loss.contract.row_stats and not are_live(recipe.references):
        message = needs_live_reference(loss.contract.name, loss.contract.row_stats)
        raise recipe.located(RecipeError(message))
    return loss


def _check_metric(recipe: Recipe, contract: LossContract) -> None:
    metric = recipe.eval.metric if recipe.eval is not None else "loss"
    known = STRUCTURES[contract.structure].eval_metrics
    if metric not in known:
        raise recipe.located(
            RecipeError(
                f"eval.metric: {contract.name} learns from single answers and has no {metric}. "
                f"Choose {' or '.join(known)}."
            )
        )


def _changed(block: Optim, names: Sequence[str]) -> list[str]:
    """Return those of ``names`` that are not at their default."""
    return [name for name in names if getattr(block, name) != type(block).model_fields[name].default]


def data_of(recipe: Recipe, tokenizer: Any, loss: BoundLoss, *, use_cache: bool = True) -> Data:
    """Read, check and tokenize the recipe's rows, and set the held-out part aside.

    Raises:
        DataError: a source cannot be read, or its rows cannot serve the loss.
    """
    main = _prepare(recipe, recipe.data, tokenizer, loss, use_cache)
    _check_weights(main.table, loss)
    if recipe.eval is None:
        return Data(main.table, None, main.report)
    if recipe.eval.data is not None:
        for index, source in enumerate(recipe.eval.data):
            if source.weight != 1.0:
                raise recipe.located(
                    RecipeError(
                        f"eval.data.{index}.weight: {source.weight:g} has no effect, since an evaluation reads every "
                        f"row once. Take it out."
                    )
                )
        other = _prepare(recipe, recipe.eval.data, tokenizer, loss, use_cache)
        _check_weights(other.table, loss)
        return Data(main.table, other.table, main.report, other.report)
    assert recipe.eval.split is not None
    if len(main.table) == 0:
        return Data(main.table, None, main.report)  # nothing to split; the report says why
    train, held_out = split_table(main.table, recipe.eval.split, recipe.seed)
    return Data(train, held_out, main.report)


def _check_weights(table: GroupTable, loss: BoundLoss) -> None:
    """Refuse tokens that count more or less than others where the loss would count them alike."""
    if table.token_weights is None or "weight" in loss.contract.policy_stats:
        return
    partial = np.flatnonzero(np.isfinite(table.token_weights) & ~np.isin(table.token_weights, (0.0, 1.0)))
    if len(partial):
        response = np.searchsorted(table.response_starts, partial[0], side="right") - 1
        origin = table.origin(int(table.group_of_response[response]))
        raise DataError(
            f"{origin}: a turn has the weight {table.token_weights[partial[0]]:g}, but {loss.contract.name} counts all "
            f"scored tokens alike. Use 0 and 1 only, or add {{name: token_weighted}} under loss.with."
        )


def split_table(table: GroupTable, share: float, seed: int) -> tuple[GroupTable, GroupTable]:
    """Set ``share`` of the groups aside by a digest of their prompt; equal prompts stay on one side."""
    ranks = _prompt_ranks(table, seed)
    wanted = max(1, round(share * len(table)))
    border = np.partition(ranks, wanted - 1)[wanted - 1]
    held_out = np.flatnonzero(ranks <= border)
    rest = np.flatnonzero(ranks > border)
    if len(rest) == 0:
        raise RecipeError(
            f"eval.split: {share:g} of {len(table)} rows leaves nothing to train on, since equal prompts stay "
            f"together. Give more rows, or eval.data."
        )
    return table.select(rest), table.select(held_out)


def plan_of(recipe: Recipe, table: GroupTable, loss: BoundLoss, world: int) -> Plan:
    """Plan the optimizer steps over the training groups."""
    return Plan(
        sizes=table.sizes(recipe.batch.share_prompts),
        units_per_step=recipe.batch.pairs_per_step,
        tokens_per_batch=recipe.batch.tokens_per_batch,
        unit=loss.contract.structure,
        seed=recipe.seed,
        world=world,
        source_of=table.source_of,
        source_weights=table.source_weights,
    )


def eval_plan_of(recipe: Recipe, table: GroupTable, loss: BoundLoss, world: int) -> Plan:
    """Plan one pass over the held-out groups, in order, each once."""
    return Plan(
        sizes=table.sizes(recipe.batch.share_prompts),
        units_per_step=max(recipe.batch.pairs_per_step, 64),
        tokens_per_batch=recipe.batch.tokens_per_batch,
        unit=loss.contract.structure,
        world=world,
        shuffle=False,
    )


def num_steps(recipe: Recipe, plan: Plan) -> int:
    """Return the optimizer steps of the whole run."""
    if recipe.train.steps is not None:
        return recipe.train.steps
    assert recipe.train.epochs is not None
    return plan.num_steps(recipe.train.epochs)


def engine_of(recipe: Recipe) -> Engine:
    """Join the process group and choose the device."""
    return Engine(autocast=DTYPES[recipe.model.autocast] if recipe.model.autocast else None)


def scoring_recipe(
    model: str, data: str, *, split: str | None, adapter: str | None, dtype: str, chat_template: str | None
) -> Recipe:
    """Return a recipe that names a model and data to score; nothing of it trains.

    Raises:
        RecipeError: a value that a recipe would refuse.
    """
    block = {"path": model, "dtype": dtype, "adapter": adapter, "chat_template": chat_template}
    text = dump_yaml(
        {
            "output": "unused",
            "model": {key: value for key, value in block.items() if value is not None},
            "data": {"path": data} if split is None else {"path": data, "split": split},
            "loss": {"name": "sft"},
            "optim": {"lr": 1.0},
        }
    )
    return parse_recipe(text, name="score")


def score_all(
    reference: Reference,
    loss: BoundLoss,
    tables: list[tuple[GroupTable, Plan]],
    engine: Engine,
    share_prompts: bool,
    progress: Callable[[int], None],
) -> LogpCache:
    """Run a reference once over every group, spread over ranks, and hand all values to all ranks."""
    cache = LogpCache(own_stats(loss.contract.reference_stats))
    reader = Reader(engine.rank, engine.world, engine.device)

    def batches() -> Iterator[Any]:
        for table, plan in tables:
            steps = PlannedSteps(plan, table, share_prompts)
            for step in steps.stream(0, len(steps), reader):
                yield from (batch.to(engine.device, non_blocking=True) for batch in step.packs)

    with engine.autocast():
        fill_cache(cache, reference, batches(), progress, skip_known=engine.sharding is None)
    if engine.world > 1:
        keys, lengths, values = (engine.gather(part.to(engine.device)) for part in cache.flat())
        cache.add_flat(keys, lengths, values)
    return cache


def _prepare(
    recipe: Recipe, sources: tuple[DataSource, ...], tokenizer: Any, loss: BoundLoss, use_cache: bool
) -> Prepared:
    return prepare(
        [source_of(source) for source in sources],
        tokenizer,
        max_tokens=recipe.batch.max_tokens,
        truncate=recipe.rows.truncate,
        on_identical=recipe.rows.on_identical,
        on_tie=recipe.rows.on_tie,
        needs=needs_of(loss.contract),
        turns=recipe.rows.turns,
        chat_template=recipe.model.chat_template,
        cache_dir=cache_folder() / "tokenized" if use_cache else None,
    )


def needs_of(contract: LossContract) -> Needs:
    """Return what a loss asks of the rows."""
    return Needs(
        structure=contract.structure,
        roles=contract.roles,
        inputs=tuple(name for name, is_required in contract.inputs.items() if is_required),
        optional=tuple(name for name, is_required in contract.inputs.items() if not is_required),
        prompts=contract.prompts,
        loss=contract.name,
    )


def source_of(source: DataSource) -> Source:
    """Translate one source of a recipe; built-in rows are made here."""
    fields = source.model_dump()
    if demo.is_builtin(source.path):
        return Source(**fields, rows=demo.rows(source.path, source.split or "train"))
    return Source(**fields)


def _prompt_ranks(table: GroupTable, seed: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return a number for each group that depends on its first prompt and the seed alone, int64 [G]."""
    start = seed.to_bytes(8, "little")
    firsts = table.group_prompts[:-1]
    bounds = zip(table.prompt_starts[firsts].tolist(), table.prompt_starts[firsts + 1].tolist(), strict=True)
    ids = table.prompt_ids
    digests = (blake2b(start + ids[low:high].tobytes(), digest_size=7).digest() for low, high in bounds)
    return np.array([int.from_bytes(digest, "little") for digest in digests], dtype=np.int64)


def _check_several(recipe: Recipe, loss: BoundLoss) -> None:
    """Refuse a list of references that the loss does not combine, and a single one where it would."""
    listed = recipe.reference if isinstance(recipe.reference, tuple) else ()
    combines = OTHER_REFERENCES[0] in loss.contract.reference_stats
    if listed and loss.contract.needs_reference and not combines:
        raise recipe.located(
            RecipeError(
                f"reference: {loss.contract.name} compares with one reference, but {len(listed)} are listed. Keep "
                f"one, or combine them under loss.with, e.g. by {{name: multi_ref}}."
            )
        )
    if len(listed) > 1 + len(OTHER_REFERENCES):
        most = 1 + len(OTHER_REFERENCES)
        raise recipe.located(RecipeError(f"reference: {len(listed)} are listed. Give at most {most}."))
    if combines and not listed:
        raise recipe.located(
            RecipeError(
                f"reference: {loss.contract.name} combines several references, but there is only "
                f"{_short(recipe.reference)}. Write a list, e.g. [{{path: other}}, initial]."
            )
        )


def _short(value: Any) -> str:
    match value:
        case None | str():
            return value or "the default one"
        case tuple():
            return f"[{', '.join(map(_short, value))}]"
    first = next(iter(type(value).model_fields))
    return f"{{{first}: {getattr(value, first)}}}"
