"""Draw a loss and its slope over the margin as text; without plotext, print the numbers of the drawing."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from prefopt.verbs.losses.curves import Curve, Curves
from prefopt.verbs.losses.printing import say, table

EVERY = 8
"""Of so many points that are drawn, one is printed as a number."""


def draw(curves: Curves) -> None:
    """Print the curves, drawn where plotext is installed and as a table where not."""
    try:
        import plotext
    except ImportError:
        _tabulate(curves)
    else:
        for what in ("loss", "slope"):
            _plot(plotext, curves, what)


def _plot(plotext: ModuleType, curves: Curves, what: str) -> None:
    figure = plotext.figure
    figure.clear()
    figure.plot_size(72, 13)
    for curve, mark in zip(curves.lines, ("braille", "dot"), strict=False):
        _add(figure, curve, what, mark)
    figure.label(curves.axis, axis="x")
    text = str(figure.build())
    say("")
    sys.stdout.write((text if sys.stdout.isatty() else plotext.uncolorize(text)) + "\n")


def _add(figure: Any, curve: Curve, what: str, mark: str) -> None:
    signal = figure.signal(list(curve.margin), list(getattr(curve, what)), marker=mark)
    signal.lines()
    signal.label(f"{what} {curve.label}".strip())
    figure.draw(signal)


def _tabulate(curves: Curves) -> None:
    heads = ["margin"]
    columns = [curves.lines[0].margin]
    for curve in curves.lines:
        heads += [f"loss {curve.label}".strip(), f"slope {curve.label}".strip()]
        columns += [curve.loss, curve.slope]
    say(f"\nmargin: {curves.axis}")
    table(heads, [[f"{value:.4g}" for value in row] for row in zip(*columns, strict=True)][::EVERY])
    say("To have this drawn: pip install 'prefopt[plot]'")
