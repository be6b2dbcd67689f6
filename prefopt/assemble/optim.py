"""From a recipe's ``optim`` block to the settings of an optimizer, refused where it cannot run."""

from __future__ import annotations

import torch

from prefopt.optim import OptimSettings, check_optimizer
from prefopt.recipe import Optim


def optim_of(block: Optim) -> OptimSettings:
    """Translate the block."""
    settings = block.model_dump()
    return OptimSettings(optimizer=settings.pop("name"), **settings)


def check_optim(block: Optim, device: torch.device, *, is_sharded: bool) -> None:
    """Refuse an optimizer that cannot run on a device, or not with weights spread over ranks.

    Raises:
        RecipeError: names the setting and what it needs.
    """
    check_optimizer(optim_of(block), device, is_sharded=is_sharded)
