"""ODPO against sums worked by hand."""

import math

import pytest
import torch

from prefopt.losses import offset


def scores(chosen, rejected):
    return {
        "chosen_score": torch.tensor([chosen], dtype=torch.float64),
        "rejected_score": torch.tensor([rejected], dtype=torch.float64),
    }


def test_the_log_of_the_gap_is_wanted_on_top(up_and_down):
    """Gap e: 0.2 - 0.1 * log e = 0.1; log(1 + e^-0.1) = 0.644397."""
    output = offset(*up_and_down, beta=0.1, alpha=0.1, **scores(math.e + 1.0, 1.0))
    assert output.loss.item() == pytest.approx(0.644397, abs=1e-6)  # six digits are written above
    assert output.chosen_reward.item() == pytest.approx(0.1, rel=1e-15)


def test_the_gap_itself(up_and_down):
    """0.2 - 0.1 * 3 = -0.1; log(1 + e^0.1) = 0.744397."""
    loss = offset(*up_and_down, beta=0.1, alpha=0.1, scale="identity", **scores(4.0, 1.0)).loss
    assert loss.item() == pytest.approx(0.744397, abs=1e-6)


def test_a_wider_gap_pulls_harder(up_and_down):
    slopes = []
    for gap in (0.1, 1.0, 10.0):
        policy, reference = up_and_down
        tokens = policy.chosen.tokens.requires_grad_()
        loss = offset(policy, reference, **scores(gap, 0.0)).loss
        slopes.append(torch.autograd.grad(loss.sum(), tokens)[0][0].item())
    assert slopes == sorted(slopes, reverse=True)


@pytest.mark.parametrize("gap", [0.0, 1e-9, -3.0])
def test_scores_that_tie_or_disagree_with_the_label_hardly_count(up_and_down, gap):
    """The gap is held at 1e-6: 0.2 + 13.815511 of margin cost 8.187e-7."""
    loss = offset(*up_and_down, beta=0.1, alpha=1.0, **scores(gap, 0.0)).loss
    assert loss.item() == pytest.approx(8.187e-7, rel=1e-4)
