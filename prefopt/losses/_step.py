"""What losses over a whole optimizer step share: averages, also over earlier steps, and matched quantiles."""

from __future__ import annotations

import torch
from torch import Tensor

from prefopt.losses._terms import scramble
from prefopt.types import LabelledLogps


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
    """Return (values - mean) / std, and 0 where there is no spread; outside the graph.

    What is not finite stays so: NaN is no lack of spread.
    """
    return torch.where(std == 0, 0.0, (values - mean) / std)


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


def ranks(values: Tensor) -> Tensor:
    """Return how many of ``values`` [U] come before each when they are sorted, int64 [U]; equals keep their order."""
    return values.argsort(stable=True).argsort()


def matched_quantiles(values: Tensor, is_first: Tensor) -> Tensor:
    """Return, for each value, the value of the other of two sides at the same quantile, differentiable.

    The i-th smallest (from 0) of n values lies at (i + 1/2) / n. Where the counts differ, the other side is
    interpolated linearly between its own places, and its least and greatest value stand for what lies
    beyond them. Counts stay on the device.

    Args:
        values: [U].
        is_first: bool [U], which of them are on the first side.

    Returns:
        [U]; something finite where the other side has no value.
    """
    last, num_first = len(values) - 1, is_first.sum()
    # the first side, sorted, then the other
    order = values.argsort(stable=True)
    order = order[(~is_first[order]).to(torch.int8).argsort(stable=True)]
    ordered, place = values[order], order.argsort()
    rank = torch.where(is_first, place, place - num_first)
    n = torch.where(is_first, num_first, len(values) - num_first)
    m = len(values) - n
    # place among the m others in units of 1 / (2 n), so that equal counts match without rounding
    at = torch.minimum((2 * rank + 1) * m - n, 2 * n * (m - 1)).clamp(min=0)
    low = at.div(2 * n, rounding_mode="floor")
    share = (at - 2 * n * low).to(values.dtype) / (2 * n)
    start = torch.where(is_first, num_first, 0)
    high = torch.minimum(low + 1, m - 1)
    low, high = ((start + each).clamp(0, last) for each in (low, high))
    return torch.lerp(ordered[low], ordered[high], share)


def gumbel(seeds: Tensor, dtype: torch.dtype) -> Tensor:
    """Draw a number of the standard Gumbel distribution for each seed, [U].

    The largest k of log-weights plus such numbers are a sample of k without replacement.
    """
    # 23 bits and a half, so that float32 holds neither 0 nor 1
    uniform = ((scramble(seeds) >> 41 & (1 << 23) - 1).to(dtype) + 0.5) / (1 << 23)
    return -torch.log(-torch.log(uniform))


def signs(sides: LabelledLogps) -> Tensor:
    """Return 1 for each desirable answer and -1 for every other, [S]."""
    return torch.where(sides.is_desirable, 1.0, -1.0).to(sides.answers.tokens.dtype)
