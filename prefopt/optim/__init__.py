"""Optimizers and learning-rate schedules, each a table by name.

    OPTIMIZERS    adamw, adamw_8bit, adafactor, muon
    SCHEDULES     cosine, linear, constant, wsd

``OptimSettings`` names one of each and refuses what they do not read; ``make_optimizer`` builds the optimizer;
``state_tensors`` and ``load_state_tensors`` carry its state through a checkpoint.
"""

from prefopt.optim.kind import Kept, total_size, trainable
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
