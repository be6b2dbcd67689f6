"""Draw docs/losses.png, every loss at its defaults over its margin: `python docs/plot_losses.py`."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

from prefopt.losses import LOSSES
from prefopt.verbs.losses.curves import Curves, curves_of

PICTURE = Path(__file__).with_name("losses.png")
COLUMNS = 7


def main() -> None:
    """Write the picture."""
    found = {name: curves for name, loss in LOSSES.items() if (curves := curves_of(loss)) is not None}
    rows = -(-len(found) // COLUMNS)
    figure, grid = plt.subplots(rows, COLUMNS, figsize=(2.1 * COLUMNS, 1.7 * rows), layout="constrained")
    for axes in grid.flat[len(found) :]:
        axes.set_visible(False)
    for axes, (name, curves) in zip(grid.flat, found.items(), strict=False):
        _draw(axes, name, curves)
    figure.suptitle(
        "Loss (solid) and slope (dashed) over the margin in nats; orange: undesirable answers", fontsize=9
    )
    figure.savefig(PICTURE, dpi=72)


def _draw(axes: plt.Axes, name: str, curves: Curves) -> None:
    slopes = axes.twinx()
    for curve, colour in zip(curves.lines, ("tab:blue", "tab:orange"), strict=False):
        axes.plot(curve.margin, curve.loss, color=colour, linewidth=1.2)
        slopes.plot(curve.margin, curve.slope, color=colour, linewidth=0.9, linestyle="--")
    axes.set_title(name, fontsize=8)
    for each in (axes, slopes):
        each.tick_params(labelsize=5)


if __name__ == "__main__":
    main()
