"""Where plots are drawn: with matplotlib and without a screen, or not at all where it is not installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.shared.environment import is_installed


def drawn(path: Path, draw: Callable[[Any], Any]) -> str:
    """Write a PNG and return where it is, or why there is none.

    Args:
        path: of the PNG.
        draw: makes the figure with matplotlib's ``pyplot``.
    """
    if not is_installed("matplotlib"):
        return "no plot: matplotlib is not installed"
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure = draw(plt)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return str(path)
