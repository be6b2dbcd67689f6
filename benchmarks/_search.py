"""Look for the batch size that is fastest among those that fit into memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

GAIN = 1.02
"""A doubled batch must be faster by this to be worth another doubling."""


@dataclass(slots=True)
class Search:
    """Every size that was tried, and its rate; None where it does not fit."""

    rates: dict[int, float | None] = field(default_factory=dict)

    @property
    def best(self) -> int | None:
        """Return the fastest size that fits."""
        fitting = {size: rate for size, rate in self.rates.items() if rate is not None}
        return max(fitting, key=lambda size: fitting[size], default=None)


def search(run: Callable[[int], float | None], *, start: int, most: int, least: int = 1) -> Search:
    """Halve from ``start`` until a size fits, or double from it for as long as that fits and pays.

    Args:
        run: tries a size and returns its rate; None where memory does not suffice, 0 where something else is
            wrong, which ends the search.
        start: the size that is expected to fit.
        most: the largest size that makes sense.
        least: the smallest.
    """
    found = Search()
    size = max(least, min(start, most))
    found.rates[size] = rate = run(size)
    if rate is None:
        while rate is None and size > least:
            size = max(least, size // 2)
            found.rates[size] = rate = run(size)
        return found
    while rate and size < most:
        before, size = rate, min(2 * size, most)
        found.rates[size] = rate = run(size)
        if rate is not None and rate < GAIN * before:
            break
    return found
