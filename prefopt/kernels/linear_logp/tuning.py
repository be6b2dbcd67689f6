"""Time plans on the machine at hand and remember the fastest: what ``PREFOPT_LOGP_TUNE=FILE`` turns on.

The first call with a new kind of problem is slow; FILE then holds its plan for every later run.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

from prefopt.kernels.linear_logp.plans import Blocks, LogpProblem, TilePlan, candidates, plan_for

log = logging.getLogger(__name__)

VARIABLE = "PREFOPT_LOGP_TUNE"


def tuned_plan(problem: LogpProblem, timed: Callable[[TilePlan], float]) -> TilePlan:
    """Return the plan to use: the table's, or where the variable is set the measured one.

    Args:
        problem: the device, dtype and sizes.
        timed: runs the problem under a plan and returns milliseconds.
    """
    file = os.environ.get(VARIABLE)
    if not file:
        return plan_for(problem)
    plans = _read(file)
    bucket = problem.bucket()
    if bucket not in plans:
        plans[bucket] = _fastest(problem, timed)
        try:
            _write(Path(file), plans)
        except OSError as error:
            log.warning("%s: the plan could not be kept (%s). The next start times it again.", file, error)
    return plans[bucket]


def _fastest(problem: LogpProblem, timed: Callable[[TilePlan], float]) -> TilePlan:
    """Improve the forward first, then the backward; each is timed with the rest held still."""
    best, blocks = plan_for(problem), candidates(problem)
    best = _best(
        timed, [replace(best, forward="tile"), *(replace(best, forward="fused", stats=b) for b in blocks)]
    )
    return _best(
        timed,
        [replace(best, backward="tile"), *(replace(best, backward="fused", gradient=b) for b in blocks)],
    )


def _best(timed: Callable[[TilePlan], float], plans: list[TilePlan]) -> TilePlan:
    times = [timed(plan) for plan in plans]
    return plans[times.index(min(times))]


@cache
def _read(file: str) -> dict[str, TilePlan]:
    path = Path(file)
    stored: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
    return {bucket: _plan(values) for bucket, values in stored.items()}


def _plan(values: dict[str, Any]) -> TilePlan:
    stats, gradient, fold = (Blocks(**values[name]) for name in ("stats", "gradient", "fold"))
    return TilePlan(values["forward"], values["backward"], stats, gradient, fold)


def _write(path: Path, plans: dict[str, TilePlan]) -> None:
    # replaced in one go: other processes of the same run may be reading it
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.write_text(json.dumps({bucket: asdict(plan) for bucket, plan in plans.items()}, indent=1) + "\n")
    os.replace(draft, path)
