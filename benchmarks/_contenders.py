"""Who takes part in the step benchmark on a CPU: prefopt in four ways, and TRL in its best ones for a process."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from benchmarks._ours import Prefopt, Way
from benchmarks._task import Task
from benchmarks._trl import Trl, TrlWay

CONTENDERS: dict[str, Callable[[Task], Prefopt | Trl]] = {
    "prefopt": Prefopt,
    "prefopt, cached reference": partial(Prefopt, way=Way(is_cached=True)),
    "prefopt, padding-free only": partial(Prefopt, way=Way(layout="padding-free")),
    "prefopt, padded": partial(Prefopt, way=Way(layout="padded")),
    "TRL": Trl,
    "TRL, grouped by length": partial(Trl, way=TrlWay(sorts=True)),
    "TRL, precomputed reference": partial(Trl, way=TrlWay(is_cached=True)),
}
"""By the name in the table."""


def worst_gap(losses: list[float | None], others: list[float | None]) -> float:
    """Return the largest difference of two loss curves."""
    return float(np.abs(np.array(losses, float) - np.array(others, float)).max())
