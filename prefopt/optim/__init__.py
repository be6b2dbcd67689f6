"""Optimizers and learning-rate schedules, each a table by name.

``OPTIMIZERS`` has a file for each, ``SCHEDULES`` a function for each. ``OptimSettings`` names one of both and
refuses what they do not read; ``make_optimizer`` builds the optimizer; ``state_tensors`` and ``load_state_tensors``
carry its state through a checkpoint. The tables and the settings load without torch, so that a recipe is checked
at once; see ``__getattr__``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from prefopt.optim.kind import Kept, total_size, trainable
from prefopt.optim.schedules import DECAY_SHAPES, SCHEDULES
from prefopt.optim.settings import (
    OPTIMIZERS,
    MakeOptimizer,
    OptimSettings,
    as_settings,
    check_steps,
    learning_rate,
    own_settings,
    unread,
)

if TYPE_CHECKING:
    from prefopt.optim.make import (
        check_optimizer,
        describe,
        kept,
        kept_bytes,
        make_optimizer,
        moved,
        name_of,
        peak_lr,
        set_learning_rate,
        trained,
    )
    from prefopt.optim.state import load_state_tensors, state_tensors

__all__ = [
    "DECAY_SHAPES",
    "OPTIMIZERS",
    "SCHEDULES",
    "Kept",
    "MakeOptimizer",
    "OptimSettings",
    "as_settings",
    "check_optimizer",
    "check_steps",
    "describe",
    "kept",
    "kept_bytes",
    "learning_rate",
    "load_state_tensors",
    "make_optimizer",
    "moved",
    "name_of",
    "own_settings",
    "peak_lr",
    "set_learning_rate",
    "state_tensors",
    "total_size",
    "trainable",
    "trained",
    "unread",
]


def __getattr__(name: str) -> Any:
    # a recipe is checked by the two tables, for which torch need not be loaded
    for home in ("make", "state") if name in __all__ else ():
        found = getattr(import_module(f"{__name__}.{home}"), name, None)
        if found is not None:
            return found
    raise AttributeError(f"module '{__name__}' has no attribute {name!r}")
