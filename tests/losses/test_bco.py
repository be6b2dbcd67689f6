"""BCO with its running baseline against sums worked by hand."""

import math

import pytest
import torch

from prefopt.losses import bco, bco_unpaired
from prefopt.types import LabelledLogps


def cost(margin):
    return math.log1p(math.exp(-margin))


def test_rewards_are_judged_around_their_mean(pairs):
    """Log-ratios 2 and -1 at beta 0.5: rewards 1 and -0.5 lie 0.75 from their mean 0.25; 2 * 0.386871 = 0.773742."""
    output = bco(pairs([[-1.0]], [[-3.0]]), pairs([[-3.0]], [[-2.0]]), beta=0.5)
    assert output.loss.item() == pytest.approx(2 * cost(0.75), rel=1e-12)
    assert output.loss.item() == pytest.approx(0.773742, abs=1e-6)
    assert (output.chosen_reward.item(), output.rejected_reward.item()) == (1.0, -0.5)
    assert output.metrics["baseline"].tolist() == [0.25]
    assert (output.carried["baseline"].item(), output.carried["baseline_count"].item()) == (0.25, 2)


def test_the_baseline_is_the_mean_of_all_rewards_so_far(pairs):
    """0.25 over two, then 3 and 1: (0.5 + 4) / 4 = 1.125; log(1 + e^-1.875) + log(1 + e^-0.125)."""
    first = bco(pairs([[-1.0]], [[-3.0]]), pairs([[-3.0]], [[-2.0]]), beta=0.5)
    policy, reference = pairs([[-1.0]], [[-1.0]]), pairs([[-7.0]], [[-3.0]])
    output = bco(policy, reference, beta=0.5, **first.carried)
    assert output.carried["baseline"].item() == pytest.approx(1.125, rel=1e-15)
    assert output.carried["baseline_count"].item() == 4
    assert output.loss.item() == pytest.approx(cost(1.875) + cost(0.125), rel=1e-12)


def test_the_baseline_is_held_constant(pairs):
    """The slope of the chosen reward is -sigmoid(-0.75) = -0.320821, whatever it does to the mean."""
    policy = pairs([[-1.0]], [[-3.0]])
    policy.chosen.tokens.requires_grad_()
    bco(policy, pairs([[-3.0]], [[-2.0]]), beta=0.5).loss.sum().backward()
    assert policy.chosen.tokens.grad.item() == pytest.approx(-0.5 * 0.320821, abs=1e-6)


def test_unpaired_answers_are_judged_around_the_mean_of_both_sides(answers):
    """Rewards 1, 0 and -0.5 (mean 1/6), the last two undesirable: margins 5/6, 1/6 and 2/3."""
    labels = torch.tensor([True, False, False])
    policy = LabelledLogps(answers([[-1.0], [-2.0], [-3.0]]), labels)
    reference = LabelledLogps(answers([[-3.0], [-2.0], [-2.0]]), labels)
    output = bco_unpaired(policy, reference, beta=0.5)
    assert output.loss.tolist() == pytest.approx([cost(5 / 6), cost(1 / 6), cost(2 / 3)], rel=1e-12)
    assert output.chosen_reward.tolist() == [1.0, 0.0, -0.5]
    assert output.rejected_reward is None
    assert output.carried["baseline"].item() == pytest.approx(1 / 6, rel=1e-15)
    assert output.carried["baseline_count"].item() == 3
    later = bco_unpaired(policy, reference, beta=0.5, **output.carried)
    assert later.carried["baseline"].item() == pytest.approx(1 / 6, rel=1e-15)
    assert later.carried["baseline_count"].item() == 6


def test_a_long_run_neither_forgets_nor_overflows(pairs):
    """After 2^40 rewards of mean 0.25, one pair of mean 1.25 moves the baseline by 2 / 2^40."""
    policy, reference = pairs([[-1.0]], [[-1.0]]), pairs([[-5.0]], [[-2.0]])
    count = torch.tensor(2**40)
    output = bco(policy, reference, beta=0.5, baseline=torch.tensor(0.25).double(), baseline_count=count)
    assert output.carried["baseline_count"].item() == 2**40 + 2
    assert output.carried["baseline"].item() - 0.25 == pytest.approx(2 / 2**40, rel=1e-3)
