"""Scoring without training: what a model says of rows, and what a reference says of all groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from prefopt.assemble.loss import BoundLoss
from prefopt.data.packs.plan import Plan
from prefopt.data.packs.steps import PlannedSteps, Reader
from prefopt.data.tokens.table import GroupTable
from prefopt.engine import Engine
from prefopt.engine.agree import together
from prefopt.recipe import Recipe, parse_recipe
from prefopt.recipe.strict_yaml import dump_yaml
from prefopt.reference import Reference, fill_cache, own_stats
from prefopt.reference.cache import LogpCache


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
    """Run a reference once over every group, spread over ranks, and hand all values to all ranks.

    Raises:
        NonFiniteError: the reference said something that is not finite; names the row.
    """
    cache = LogpCache(own_stats(loss.contract.reference_stats))
    reader = Reader(engine.rank, engine.world, engine.device)

    def batches() -> Iterator[Any]:
        for table, plan in tables:
            steps = PlannedSteps(plan, table, share_prompts)
            for step in steps.stream(0, len(steps), reader):
                yield from (batch.to(engine.device, non_blocking=True) for batch in step.packs)

    with together(engine), engine.autocast():
        fill_cache(cache, reference, batches(), progress, skip_known=engine.sharding is None)
    if engine.world > 1:
        keys, lengths, values = (engine.gather(part.to(engine.device)) for part in cache.flat())
        cache.add_flat(keys, lengths, values)
    return cache
