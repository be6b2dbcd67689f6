"""Draw the benchmark of head log-probs: milliseconds of forward and backward, a panel per problem."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.logp.measure import Line
from benchmarks.shared.plots import drawn


def plot(lines: Sequence[Line], path: Path) -> str:
    """Write a PNG and return where it is, or why there is none."""
    timed = [line for line in lines if line.forward_ms]
    return drawn(path, partial(_figure, timed)) if timed else "no plot: nothing was timed"


def _figure(timed: Sequence[Line], pyplot: Any) -> Any:
    tasks = list(dict.fromkeys(line.task for line in timed))
    shapes = list(dict.fromkeys(line.shape for line in timed))
    names = list(dict.fromkeys(line.provider for line in timed))
    size = (5 * len(tasks), (0.32 * len(names) + 1.1) * len(shapes))
    figure, axes = pyplot.subplots(len(shapes), len(tasks), figsize=size, squeeze=False, layout="constrained")
    for row, shape in enumerate(shapes):
        for column, task in enumerate(tasks):
            panel = axes[row][column]
            found = [line for line in timed if line.shape == shape and line.task == task][::-1]
            forward = [statistics.median(line.forward_ms) for line in found]
            backward = [statistics.median(line.backward_ms) for line in found]
            labels = [line.provider for line in found]
            panel.barh(labels, forward, color="#4878a8", label="forward")
            panel.barh(labels, backward, left=forward, color="#a8c4dc", label="backward")
            panel.set_title("{}: N={} H={} V={}".format(task, *shape), fontsize=9)
            panel.tick_params(labelsize=8)
            panel.set_xlabel("ms", fontsize=8)
    axes[0][0].legend(fontsize=8)
    return figure
