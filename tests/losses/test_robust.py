"""Robust DPO against sums worked by hand, and the unbiasedness it is made for."""

import math

import pytest
import torch

from prefopt.losses import dpo, robust


def test_margin_of_two_nats_at_a_tenth_flipped(up_and_down):
    """At m = 0.2: (0.9 * 0.598139 - 0.1 * 0.798139) / 0.8 = 0.573139."""
    output = robust(*up_and_down, beta=0.1, label_smoothing=0.1)
    assert output.loss.tolist() == pytest.approx([0.573139], abs=1e-6)  # six digits are written above
    assert output.chosen_reward.tolist() == pytest.approx([0.1], rel=1e-15)
    assert output.rejected_reward.tolist() == pytest.approx([-0.1], rel=1e-15)


def test_margin_zero_costs_log_two_whatever_the_rate(up_and_down):
    """((1 - e) log 2 - e log 2) / (1 - 2 e) = log 2."""
    policy, _ = up_and_down
    for rate in (0.0, 0.1, 0.45):
        loss = robust(policy, policy, label_smoothing=rate).loss
        assert loss.item() == pytest.approx(math.log(2.0), rel=1e-15)


def test_flipping_labels_at_the_rate_leaves_the_expectation_at_dpo(pairs, up_and_down):
    """(1 - e) * robust(pair) + e * robust(swapped pair) = dpo(pair), here at e = 0.3 with loss 0.598139."""
    policy, reference = up_and_down
    swapped = [pairs([side.rejected.tokens.tolist()], [side.chosen.tokens.tolist()]) for side in up_and_down]
    kept = robust(policy, reference, label_smoothing=0.3).loss
    flipped = robust(*swapped, label_smoothing=0.3).loss
    assert (0.7 * kept + 0.3 * flipped).item() == pytest.approx(dpo(policy, reference).loss.item(), rel=1e-14)


def test_it_falls_without_end(pairs):
    """At m = 100, e = 0.1: log(1 + e^-100) - 0.1 / 0.8 * 100 = -12.5."""
    zero = pairs([[0.0]], [[0.0]])
    loss = robust(pairs([[100.0]], [[0.0]]), zero, beta=1.0, label_smoothing=0.1).loss
    assert loss.item() == pytest.approx(-12.5, rel=1e-15)


def test_gradient_is_that_of_dpo_minus_a_constant(up_and_down):
    """It is beta * (-sigmoid(-0.2) - 0.1 / 0.8) = 0.1 * (-0.450166 - 0.125) = -0.0575166."""
    policy, reference = up_and_down
    policy.chosen.tokens.requires_grad_()
    robust(policy, reference, beta=0.1, label_smoothing=0.1).loss.sum().backward()
    expected = torch.full((2,), -0.0575166, dtype=torch.float64)
    torch.testing.assert_close(policy.chosen.tokens.grad, expected, atol=1e-7, rtol=0.0)  # digits above
