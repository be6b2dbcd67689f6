"""Draw the full-size step benchmark: speed, share of the floor and peak memory, a row of panels per stage."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.shared.plots import drawn
from benchmarks.step.trl_contender import TrlWay

PANELS = (
    ("pairs_per_second", "pairs per second"),
    ("of_floor", "share of the floor"),
    ("peak_gib", "peak GiB"),
)


def plot(record: dict[str, Any], path: Path) -> str:
    """Write a PNG and return where it is, or why there is none; ``record`` is summarised already."""
    stages = [
        (entry["name"], lines)
        for entry in record["stages"]
        if (lines := [line for line in entry["contenders"] if "summary" in line])
    ]
    return drawn(path, partial(_figure, stages)) if stages else "no plot: nothing was timed"


def _figure(stages: Sequence[tuple[str, Sequence[dict[str, Any]]]], pyplot: Any) -> Any:
    heights = [0.28 * len(lines) + 0.9 for _, lines in stages]
    figure, axes = pyplot.subplots(
        len(stages),
        len(PANELS),
        figsize=(5 * len(PANELS), sum(heights)),
        squeeze=False,
        layout="constrained",
        height_ratios=heights,
    )
    for row, (name, lines) in enumerate(stages):
        labels = [line["name"] for line in lines][::-1]
        colors = ["#b0b0b0" if isinstance(line["way"], TrlWay) else "#4878a8" for line in lines][::-1]
        for column, (key, title) in enumerate(PANELS):
            panel = axes[row][column]
            values = [line["summary"][key] for line in lines][::-1]
            bars = panel.barh(labels, values, color=colors)
            panel.bar_label(bars, fmt="%.3g", fontsize=7, padding=2)
            panel.margins(x=0.15)  # room for the labels
            panel.set_title(name if column == 0 else "", fontsize=9, loc="left")
            panel.set_xlabel(title, fontsize=8)
            panel.tick_params(labelsize=7)
            if column:
                panel.set_yticklabels([])
    return figure
