"""Soft labels against sums worked by hand."""

import math

import pytest
import torch

from prefopt.losses import soft_label


def label(value):
    return torch.tensor([value], dtype=torch.float64)


def test_cross_entropy_with_the_label(up_and_down):
    """At m = 0.2 and s = 0.75: 0.75 * 0.598139 + 0.25 * 0.798139 = 0.648139."""
    output = soft_label(*up_and_down, soft_label=label(0.75), beta=0.1)
    assert output.loss.item() == pytest.approx(0.648139, abs=1e-6)  # six digits are written above
    assert output.chosen_reward.item() == pytest.approx(0.1, rel=1e-15)


@pytest.mark.parametrize(("certainty", "margin"), [(0.5, 0.0), (0.75, math.log(3.0)), (0.1, -math.log(9.0))])
def test_the_margin_ends_at_the_log_odds_of_the_label(pairs, certainty, margin):
    """Odds s / (1 - s) = 1, 3 and 1/9."""
    policy = pairs([[margin]], [[0.0]])
    policy.chosen.tokens.requires_grad_()
    loss = soft_label(policy, pairs([[0.0]], [[0.0]]), soft_label=label(certainty), beta=1.0).loss
    loss.sum().backward()
    assert policy.chosen.tokens.grad.item() == pytest.approx(0.0, abs=1e-15)  # rounding of log 3


def test_a_label_of_zero_is_the_pair_turned_round(up_and_down, pairs):
    swapped = [pairs([side.rejected.tokens.tolist()], [side.chosen.tokens.tolist()]) for side in up_and_down]
    one = soft_label(*up_and_down, soft_label=label(0.0)).loss
    assert one.item() == soft_label(*swapped, soft_label=label(1.0)).loss.item()
