"""What losses over a whole optimizer step share: averages, also over earlier steps, and matched quantiles."""

from __future__ import annotations

import torch
from torch import Tensor

from prefopt.losses._terms import scramble
from prefopt.types import SideLogps


def moving_moments(
    values: Tensor, mean: Tensor | None, std: Tensor | None, momentum: float
) -> tuple[Tensor, Tensor]:
    """Blend mean and standard deviation of ``values`` into those of earlier steps.

    The averages start with the first step whose values differ, for an average that starts at zero would
    make the first z-scores ten times too large. A single value has no spread and leaves it as it was.

    Args:
        values: [U], outside the graph.
        mean: [] of earlier steps, None in the first.
        std: [] likewise.
        momentum: what is left of the earlier averages.
    """
    new_mean = values.mean()
    if mean is None or std is None:
        return new_mean, values.std() if len(values) > 1 else torch.zeros_like(new_mean)
    new_std = values.std() if len(values) > 1 else std
    has_started = std > 0
    return (
        torch.where(has_started, momentum * mean + (1 - momentum) * new_mean, new_mean),
        torch.where(has_started, momentum * std + (1 - momentum) * new_std, new_std),
    )


def z_scores(values: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return (values - mean) / std, and 0 where there is no spread; outside the graph."""
    return torch.where(std > 0, (values - mean) / std, 0.0)


def running_mean(values: Tensor, mean: Tensor | None, count: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the mean over ``values`` and all earlier ones, and how many they are.

    Args:
        values: [U], outside the graph.
        mean: [] of the earlier ones, None where there are none.
        count: int64 [], how many those are.
    """
    new = torch.full((), len(values), dtype=torch.int64, device=values.device)
    if mean is None or count is None:
        return values.mean(), new
    total = count + new
    return mean + (values.mean() - mean) * (len(values) / total.to(values.dtype)), total


def matched_quantiles(own: Tensor, other: Tensor) -> Tensor:
    """Return, for each value of ``own``, the value of ``other`` at the same quantile, differentiable in ``other``.

    The i-th smallest of n values lies at (i + 1/2) / n. Where the counts differ, ``other`` is interpolated
    linearly between its own places, and its least and greatest value stand for what lies beyond them.

    Args:
        own: [N].
        other: [M].

    Returns:
        [N]; for N = M the i-th smallest of ``other`` for the i-th smallest of ``own``.
    """
    n, m = len(own), len(other)
    ranks = own.argsort(stable=True).argsort()
    ordered = other.sort().values
    # place among M in units of 1 / (2 N), so that equal counts match without rounding
    at = ((2 * ranks + 1) * m - n).clamp(0, 2 * n * (m - 1))
    low = at.div(2 * n, rounding_mode="floor")
    share = (at - 2 * n * low).to(other.dtype) / (2 * n)
    return torch.lerp(ordered[low], ordered[(low + 1).clamp(max=m - 1)], share)


def gumbel(seeds: Tensor, dtype: torch.dtype) -> Tensor:
    """Draw a number of the standard Gumbel distribution for each seed, [U].

    The largest k of log-weights plus such numbers are a sample of k without replacement.
    """
    # 23 bits and a half, so that float32 holds neither 0 nor 1
    uniform = ((scramble(seeds) >> 41 & (1 << 23) - 1).to(dtype) + 0.5) / (1 << 23)
    return -torch.log(-torch.log(uniform))


def signs(sides: SideLogps) -> Tensor:
    """Return 1 for each desirable answer and -1 for every other, [S]."""
    return torch.where(sides.is_desirable, 1.0, -1.0).to(sides.answers.tokens.dtype)
