"""Look for the batch size that is fastest among those that fit into memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.step.full_size.measure import Job
from benchmarks.step.trl_contender import TrlWay

GAIN = 1.02
"""A doubled batch must be faster by this to be worth another doubling."""
TRIED = 1.5
"""Batches of up to so many times the tokens that are expected to fit are tried."""


@dataclass(slots=True)
class Search:
    """Every size that was tried, and its rate; None where it does not fit."""

    rates: dict[int, float | None] = field(default_factory=dict)

    @property
    def best(self) -> int | None:
        """Return the fastest size that fits."""
        fitting = {size: rate for size, rate in self.rates.items() if rate is not None}
        return max(fitting, key=lambda size: fitting[size], default=None)


@dataclass(frozen=True, slots=True)
class Bounds:
    """Between which batch sizes is searched: the whole step, its half, its quarter and so on."""

    least: int
    most: int  # the largest that is worth a try
    start: int  # the one that is expected to fit


def bounds_of(job: Job, fits: float) -> Bounds:
    """Return where to search: packed tokens of ours, pairs of TRL's.

    Args:
        job: what is run.
        fits: tokens of the trunk that are expected to fit at once.
    """
    task = job.task
    if isinstance(job.way, TrlWay):
        whole, least = task.pairs_per_step, 1
        fits /= 2 * int(task.table.sizes(True).longest.max())
    else:
        shares = job.way.layout == "shared"
        tokens = task.table.sizes(shares).tokens
        least = int(tokens.max())
        plan = task.plan(shares, least)
        whole = max(int(tokens[plan.groups(step)].sum()) for step in range(task.num_steps))
    return Bounds(least, halved(whole, TRIED * fits), halved(whole, fits))


def halved(whole: int, limit: float) -> int:
    """Return the largest of ``whole``, its half, its quarter and so on that is at most ``limit``, at least 1."""
    while whole > max(1, limit):
        whole //= 2
    return whole


def search(run: Callable[[int], float | None], bounds: Bounds) -> Search:
    """Halve from the start until a size fits, or double from it for as long as that fits and pays.

    Args:
        run: tries a size and returns its rate; None where memory does not suffice, 0 where something else is
            wrong, which ends the search.
        bounds: between which sizes.
    """
    found = Search()
    size = max(bounds.least, min(bounds.start, bounds.most))
    found.rates[size] = rate = run(size)
    if rate is None:
        while rate is None and size > bounds.least:
            size = max(bounds.least, size // 2)
            found.rates[size] = rate = run(size)
        return found
    while rate and size < bounds.most:
        before, size = rate, min(2 * size, bounds.most)
        found.rates[size] = rate = run(size)
        if rate is not None and rate < GAIN * before:
            break
    return found
