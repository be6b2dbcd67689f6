"""Before any speed is shown: the losses of a few full-batch steps are held to TRL's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from benchmarks.step.in_turns.contenders import CONTENDERS, PEER, SORTED
from benchmarks.step.in_turns.team import BenchmarkError, Legs, Team
from benchmarks.step.task import Task

GATE_ROWS, GATE_STEPS = 16, 8
GATE_TOKENS = 256
"""The gate takes the first rows whose longest answer with its prompt has at most so many tokens."""
GATE_LR = 1e-4
"""Large enough for the loss to fall by tenths in 8 steps, so that a wrong gradient would show."""
GATE_TOLERANCE = 1e-4
"""Most that a loss may differ from TRL's; float32 rounding alone leaves about 4e-6 after 8 steps."""


def check_gate(task: Task, names: Sequence[str], threads: int) -> dict[str, Any]:
    """Compare every contender's losses over 8 full-batch steps with TRL's.

    Raises:
        BenchmarkError: a loss differs by more than the tolerance, or the losses do not move.
    """
    if PEER not in names:
        return {}
    fitting = [g for g in task.rows.groups if len(g.prompts[0]) + max(map(len, g.responses)) <= GATE_TOKENS]
    rows = replace(task.rows, groups=fitting[:GATE_ROWS])
    small = replace(
        task,
        rows=rows,
        num_steps=GATE_STEPS,
        pairs_per_step=GATE_ROWS,
        tokens_per_batch=1 << 30,
        warmup=0,
        lr=GATE_LR,
        records_losses=True,
    )
    # batches of other rows have other losses
    team = Team(
        {name: partial(CONTENDERS[name], small) for name in names if name not in SORTED},
        Legs(warmup=0, rounds=1, steps=GATE_STEPS),
        task.device,
        threads,
    )
    losses = {name: result.losses for name, result in team.run().items()}
    gaps = {name: worst_gap(values, losses[PEER]) for name, values in losses.items() if name != PEER}
    for name, gap in gaps.items():
        if not gap <= GATE_TOLERANCE:
            raise BenchmarkError(
                f"gate: {name} is off TRL's loss by {gap:.3g} > {GATE_TOLERANCE:g}; no speed is shown."
            )
    first, *_, last = (loss for loss in losses[PEER] if loss is not None)
    if not first - last > 100 * GATE_TOLERANCE:
        raise BenchmarkError(
            f"gate: the loss only went from {first:.6f} to {last:.6f}, which proves nothing."
        )
    return {"tolerance": GATE_TOLERANCE, "lr": GATE_LR, "rows": GATE_ROWS, "gaps": gaps, "losses": losses}


def worst_gap(losses: list[float | None], others: list[float | None]) -> float:
    """Return the largest difference of two loss curves."""
    return float(np.abs(np.array(losses, float) - np.array(others, float)).max())
