"""DiscoPOP against sums worked by hand, and the dip at its start."""

import pytest

from prefopt.losses import discopop


def test_margin_of_a_fifth(up_and_down):
    """At m = 0.2, g = sigmoid(4) = 0.982014: 0.017986 * 0.598139 + 0.982014 * 0.818731 = 0.814763."""
    output = discopop(*up_and_down, beta=0.1, tau=0.05)
    assert output.loss.tolist() == pytest.approx([0.814763], abs=1e-6)  # six digits are written above
    assert output.chosen_reward.tolist() == pytest.approx([0.1], rel=1e-15)
    assert output.rejected_reward.tolist() == pytest.approx([-0.1], rel=1e-15)


def test_margin_zero_costs_the_mean_of_both_parts(up_and_down):
    """(log 2 + 1) / 2 = 0.846574."""
    policy, _ = up_and_down
    assert discopop(policy, policy).loss.item() == pytest.approx(0.846574, abs=1e-6)  # digits above


def slope(pairs, margin):
    policy, zero = pairs([[margin]], [[0.0]]), pairs([[0.0]], [[0.0]])
    policy.chosen.tokens.requires_grad_()
    discopop(policy, zero, beta=1.0, tau=0.05).loss.sum().backward()
    return policy.chosen.tokens.grad.item()


def test_slope_at_the_start_lowers_the_margin(pairs):
    """-0.5 * 0.5 - 0.5 * 1 + (1 / 4) / 0.05 * (1 - log 2) = 0.784264; held constant, g would give -0.75."""
    assert slope(pairs, 0.0) == pytest.approx(0.784264, abs=1e-6)  # six digits are written above


def test_the_loss_rises_between_minus_0_118_and_0_072(pairs):
    assert [slope(pairs, m) > 0 for m in (-0.120, -0.116, 0.070, 0.074)] == [False, True, True, False]


@pytest.mark.parametrize(("margin", "part"), [(-5.0, "logistic"), (5.0, "exponential")])
def test_far_from_zero_one_part_is_left(pairs, margin, part):
    """Here g = sigmoid(+-100) is 0 or 1: log(1 + e^5) = 5.006715, e^-5 = 0.006738."""
    policy, zero = pairs([[margin]], [[0.0]]), pairs([[0.0]], [[0.0]])
    expected = {"logistic": 5.006715, "exponential": 0.006738}[part]
    loss = discopop(policy, zero, beta=1.0, tau=0.05).loss
    assert loss.item() == pytest.approx(expected, abs=1e-6)  # six digits are written above
