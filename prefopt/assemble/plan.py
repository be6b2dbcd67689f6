"""From the ``batch`` and ``train`` blocks of a recipe to the plan of its steps."""

from __future__ import annotations

from prefopt.assemble.loss import BoundLoss
from prefopt.assemble.optim import optim_of
from prefopt.data.packs.plan import Plan
from prefopt.data.tokens.table import GroupTable
from prefopt.optim import check_steps
from prefopt.recipe import Batch, Recipe


def plan_of(batch: Batch, table: GroupTable, loss: BoundLoss, *, seed: int, world: int) -> Plan:
    """Plan the optimizer steps over the training groups; ``seed`` is that of the recipe."""
    return Plan(
        sizes=table.sizes(batch.share_prompts),
        units_per_step=batch.pairs_per_step,
        tokens_per_batch=batch.tokens_per_batch,
        unit=loss.contract.structure,
        seed=seed,
        world=world,
        source_of=table.source_of,
        source_weights=table.source_weights,
    )


def eval_plan_of(batch: Batch, table: GroupTable, loss: BoundLoss, *, world: int) -> Plan:
    """Plan one pass over the held-out groups, in order, each once."""
    return Plan(
        sizes=table.sizes(batch.share_prompts),
        units_per_step=max(batch.pairs_per_step, 64),
        tokens_per_batch=batch.tokens_per_batch,
        unit=loss.contract.structure,
        world=world,
        shuffle=False,
    )


def num_steps(recipe: Recipe, plan: Plan) -> int:
    """Return the optimizer steps of the whole run.

    Raises:
        RecipeError: the schedule does not fit into them.
    """
    epochs, steps = recipe.train.epochs, recipe.train.steps
    if steps is None:
        assert epochs is not None
        steps = plan.num_steps(epochs)
    check_steps(optim_of(recipe.optim), steps)
    return steps
