"""From a recipe's ``optim`` block to the settings of an optimizer, refused where it cannot run."""

from __future__ import annotations

import torch

from prefopt.errors import RecipeError
from prefopt.optim import OptimSettings, check_optimizer
from prefopt.recipe import Recipe


def optim_of(recipe: Recipe) -> OptimSettings:
    """Translate the recipe's ``optim`` block."""
    settings = recipe.optim.model_dump()
    return OptimSettings(optimizer=settings.pop("name"), **settings)


def check_optim(recipe: Recipe, device: torch.device, *, is_sharded: bool) -> None:
    """Refuse an optimizer that cannot run on a device, or not with weights spread over ranks.

    Raises:
        RecipeError: names the setting and what it needs.
    """
    try:
        check_optimizer(optim_of(recipe), device, is_sharded=is_sharded)
    except RecipeError as error:
        raise recipe.located(error) from None
