"""What losses over a whole step share, against sums worked by hand."""

import math

import pytest
import torch

from prefopt.losses._step import (
    gumbel,
    matched_quantiles,
    moving_moments,
    ranks,
    running_mean,
    signs,
    z_scores,
)
from prefopt.types import LabelledLogps, SeqLogps


def values(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def both_ways(one, other):
    """Match two sides and return what each value of either meets; the sides lie one after the other."""
    joined = torch.cat([one, other])
    found = matched_quantiles(joined, torch.arange(len(joined)) < len(one))
    return found[: len(one)].tolist(), found[len(one) :].tolist()


def test_equal_counts_are_matched_by_rank():
    """The smallest with the smallest: 5 is the second of its three, so it meets 20, and 20 meets it."""
    assert both_ways(values(9, 1, 5), values(30, 20, 10)) == ([30, 10, 20], [9, 5, 1])
    assert ranks(values(9, 1, 5)).tolist() == [2, 0, 1]


def test_equal_values_take_the_places_of_their_order():
    """Both 4s are the smallest two; the first of them meets the smallest."""
    assert both_ways(values(4, 7, 4), values(1, 2, 3))[0] == [1, 3, 2]
    assert ranks(values(4, 7, 4)).tolist() == [0, 2, 1]


def test_unequal_counts_are_interpolated():
    """Of two, the values lie at 1/4 and 3/4; of three at 1/6, 1/2 and 5/6.

    1/4 lies a quarter of the way from 1/6 to 1/2: 10 + 10 / 4 = 12.5, and 3/4 likewise 20 + 3 * 10 / 4 = 27.5. The
    other way round 1/6 and 5/6 lie beyond 1/4 and 3/4, so that the ends stand for them, and 1/2 in the middle.
    """
    assert both_ways(values(1, 2), values(10, 20, 30)) == ([12.5, 27.5], [1, 1.5, 2])


def test_one_value_stands_for_all_quantiles():
    assert both_ways(values(3, 1, 2), values(7)) == ([7, 7, 7], [2])


def test_sides_may_be_mixed():
    """Good 9 1 5 among bad 30 20 10."""
    mixed = values(30, 9, 20, 1, 10, 5)
    is_first = torch.tensor([False, True, False, True, False, True])
    assert matched_quantiles(mixed, is_first).tolist() == [9, 30, 5, 10, 1, 20]


@pytest.mark.parametrize("is_first", [True, False])
def test_without_another_side_what_is_met_is_finite(is_first):
    found = matched_quantiles(values(3, 1, 2), torch.tensor([is_first] * 3))
    assert found.isfinite().all()


def test_quantiles_send_their_gradient_to_the_values_they_lie_between():
    """12.5 takes 3/4 of the first and 1/4 of the second; 27.5 takes 1/4 of the second and 3/4 of the third."""
    joined = values(1, 2, 10, 20, 30).requires_grad_()
    matched_quantiles(joined, torch.arange(5) < 2)[:2].backward(values(1, 10))
    assert joined.grad.tolist() == [0, 0, 0.75, 0.25 + 2.5, 7.5]


def test_averages_begin_with_the_first_step_whose_values_differ():
    """0 0 leaves no spread; 1 3 starts at mean 2 and root 2; then 0.9 * 2 + 0.1 * 5 = 2.3."""
    mean, std = moving_moments(values(0, 0), None, None, 0.9)
    assert (mean.item(), std.item()) == (0, 0)
    mean, std = moving_moments(values(1, 3), mean, std, 0.9)
    assert (mean.item(), std.item()) == (2, pytest.approx(math.sqrt(2)))
    mean, std = moving_moments(values(3, 7), mean, std, 0.9)
    assert mean.item() == pytest.approx(0.9 * 2 + 0.1 * 5)
    assert std.item() == pytest.approx(0.9 * math.sqrt(2) + 0.1 * math.sqrt(8))


def test_a_single_value_moves_the_mean_and_not_the_spread():
    mean, std = moving_moments(values(12), values(2)[0], values(3)[0], 0.9)
    assert (mean.item(), std.item()) == (pytest.approx(3), pytest.approx(3))
    mean, std = moving_moments(values(12), None, None, 0.9)
    assert (mean.item(), std.item()) == (12, 0)


def test_without_spread_every_z_score_is_zero():
    assert z_scores(values(5, 5), values(5)[0], values(0)[0]).tolist() == [0, 0]
    assert z_scores(values(5, 8), values(5)[0], values(2)[0]).tolist() == [0, 1.5]


def test_the_running_mean_counts_every_value_once():
    """1 2 3, then 10, then 4 4: 24 / 6 = 4."""
    mean, count = running_mean(values(1, 2, 3), None, None)
    mean, count = running_mean(values(10), mean, count)
    assert (mean.item(), count.item()) == (4, 4)
    mean, count = running_mean(values(4, 4), mean, count)
    assert (mean.item(), count.item()) == (4, 6)
    assert count.dtype == torch.int64


def test_the_largest_keys_are_a_weighted_draw():
    """Weights 1 and e^-2: the first is drawn in 0.880797 of the cases; 1e5 draws are off by 0.001, so 0.005."""
    one, other = (gumbel(torch.arange(start, start + 100_000), torch.float64) for start in (0, -100_000))
    share = (one > other - 2).double().mean().item()
    assert share == pytest.approx(0.880797, abs=5e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_seed_draws_infinity(dtype):
    """The least and the greatest of 2^23 steps are -log(-log(2^-24)) = -2.8 and 24 log 2 = 16.6."""
    drawn = gumbel(torch.tensor([0, -1, 2**63 - 1, -(2**63), *range(10_000)]), dtype)
    assert drawn.dtype == dtype
    assert drawn.isfinite().all()
    assert -3 < drawn.min() < drawn.max() < 17


def test_signs_follow_the_labels():
    sides = LabelledLogps(SeqLogps(values(-1, -2), (1, 1)), torch.tensor([True, False]))
    assert signs(sides).tolist() == [1, -1]
    assert signs(sides).dtype == torch.float64
