"""Losses over a whole step, and rows with all that they read, for the tests that split a step up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import toy

from prefopt.assemble.loss import build_loss
from prefopt.data.packs.plan import Plan
from prefopt.data.packs.steps import PlannedSteps
from prefopt.data.rows.mismatched import add_mismatched
from prefopt.engine import Engine
from prefopt.optim import OptimSettings
from prefopt.trainer import Trainer
from prefopt.types import TokenizedGroup

BLOCKS: dict[str, dict[str, Any]] = {
    "aot": {"name": "aot", "beta": 0.3, "label_smoothing": 0.1},
    "relative": {"name": "relative", "beta": 3.0},
    "relative by its diagonal": {"name": "relative", "weighting": "diagonal"},
    "beta_dynamic": {"name": "beta_dynamic"},
    "alpha_margin": {"name": "alpha_margin"},
    "bco": {"name": "bco", "beta": 0.2},
    "aot, weighted, with nll": {
        "name": "aot",
        "with": [
            {"name": "length_desensitized"},
            {"name": "weighted", "max_weight": 9.0},
            {"name": "with_nll", "nll": "batch_token"},
        ],
    },
    "dpo beside bco": {
        "name": "mixed",
        "of": [{"name": "dpo", "weight": 0.5}, {"name": "bco", "beta": 0.3, "with": [{"name": "with_nll"}]}],
    },
    "kto": {"name": "kto", "beta": 0.3, "undesirable_weight": 1.3},
    "aot_unpaired": {"name": "aot_unpaired", "beta": 0.3},
    "bco_unpaired": {"name": "bco_unpaired", "beta": 0.2},
}
"""Loss blocks by the name of their case."""

SIDES = ("kto", "aot_unpaired", "bco_unpaired")
"""Cases that learn from labelled answers."""

SPLITS = [
    *((case, "even") for case in BLOCKS),
    *((case, "ghost") for case in ("aot", "kto")),
    *((case, "sharded") for case in ("aot, weighted, with nll", "beta_dynamic")),
]
"""How cases are spread over two ranks: with equal work, with nothing but a ghost on one, with FSDP2."""


def rows(count: int = 24, answers: int = 2, seed: int = 0) -> list[TokenizedGroup]:
    """Draw groups as ``toy.groups`` does, with weights for their pairs and an embedding of the prompt."""
    rng = np.random.default_rng(seed)
    return [
        replace(
            group,
            preferences=tuple(p._replace(weight=float(rng.uniform(0.5, 1.5))) for p in group.preferences),
            prompt_embedding=rng.normal(size=5).astype(np.float32),
        )
        for group in toy.groups(count, seed, answers)
    ]


def sides(count: int = 16, seed: int = 0) -> list[TokenizedGroup]:
    """Draw groups of one or two labelled answers, more of them desirable, and as many to other prompts."""
    drawn = [
        replace(group, preferences=(), labels=(True, False))
        if row % 2
        else replace(group, preferences=(), labels=(True,), responses=group.responses[:1], prompt_of=(0,))
        for row, group in enumerate(toy.groups(count, seed))
    ]
    return add_mismatched(drawn, None)


def rows_of(case: str, count: int = 24) -> list[TokenizedGroup]:
    """Draw about ``count`` units of the kind that a case learns from."""
    return sides(2 * count // 3) if case in SIDES else rows(count)


def trainer_of(
    case: str,
    data: list[TokenizedGroup],
    engine: Engine,
    *,
    budget: int = 10_000,
    per_step: int = 24,
    steps: int = 1,
    **changes: Any,
) -> Trainer:
    """Build a trainer for one case whose policy and reference differ."""
    loss = build_loss(BLOCKS[case])
    unit = loss.contract.structure
    plan = Plan.of(data, units_per_step=per_step, tokens_per_batch=budget, world=engine.world, unit=unit)
    options: dict[str, Any] = {
        "num_steps": steps,
        "reference": toy.reference(seed=1) if loss.contract.needs_reference else None,
        "optim": OptimSettings(lr=1e-2, warmup=0, clip=None, schedule="constant"),
        "engine": engine,
    }
    return Trainer(toy.policy(), loss, PlannedSteps(plan, data), **(options | changes))
