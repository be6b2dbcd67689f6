"""The six links against sums worked by hand."""

import math

import pytest
import torch

from prefopt.losses import convex, ipo

AT = {
    # link: (loss at m = 0.2, at m = -0.2, slope at m = 0)
    "logistic": (0.598139, 0.798139, -0.5),
    "hinge": (0.8, 1.2, -1.0),
    "squared": (0.64, 1.44, -2.0),
    "exponential": (0.818731, 1.221403, -1.0),
    "truncated_quadratic": (0.64, 1.44, -2.0),
    "savage": (0.202649, 0.302317, -0.25),
}


@pytest.mark.parametrize("link", AT)
def test_loss_at_a_fifth_either_way(pairs, link):
    """Here m = beta * D = 0.1 * +-2. Savage: sigmoid(-0.2)^2 = 0.450166^2 and 0.549834^2."""
    policy, zero = pairs([[1.0], [-1.0]], [[-1.0], [1.0]]), pairs([[0.0]] * 2, [[0.0]] * 2)
    output = convex(policy, zero, beta=0.1, link=link)
    assert output.loss.tolist() == pytest.approx(AT[link][:2], abs=1e-6)  # six digits are written above
    assert output.chosen_reward.tolist() == pytest.approx([0.1, -0.1], rel=1e-15)
    assert output.rejected_reward.tolist() == pytest.approx([-0.1, 0.1], rel=1e-15)


@pytest.mark.parametrize("link", AT)
def test_slope_at_margin_zero(pairs, link):
    """Savage: 2 * sigmoid(0) * -sigmoid(0)^2 = -1 / 4."""
    policy, zero = pairs([[0.0]], [[0.0]]), pairs([[0.0]], [[0.0]])
    policy.chosen.tokens.requires_grad_()
    convex(policy, zero, beta=1.0, link=link).loss.sum().backward()
    assert policy.chosen.tokens.grad.item() == pytest.approx(AT[link][2], rel=1e-15)


def test_only_squared_pulls_back_beyond_one(pairs):
    """At m = 3: (1 - 3)^2 = 4; the truncated one 0."""
    policy, zero = pairs([[3.0]], [[0.0]]), pairs([[0.0]], [[0.0]])
    assert convex(policy, zero, beta=1.0, link="squared").loss.item() == 4.0
    assert convex(policy, zero, beta=1.0, link="truncated_quadratic").loss.item() == 0.0


def test_squared_is_ipo_on_sums_with_half_the_beta(up_and_down):
    """(b D - 1)^2 = b^2 (D - 1 / b)^2, and 1 / b = 1 / (2 * b / 2): with b = 0.25, 0.0625 * ipo at 0.125."""
    loss = convex(*up_and_down, beta=0.25, link="squared").loss
    torch.testing.assert_close(loss, 0.0625 * ipo(*up_and_down, beta=0.125, norm="sum").loss)


def test_savage_gives_a_hopeless_pair_up_and_exponential_does_not(pairs):
    """At m = -20 savage is flat: slope -2 * 1 * e^-20 = -4.1e-9; the exponential's is -e^20."""
    slopes = {}
    for link in ("savage", "exponential"):
        policy, zero = pairs([[-20.0]], [[0.0]]), pairs([[0.0]], [[0.0]])
        policy.chosen.tokens.requires_grad_()
        convex(policy, zero, beta=1.0, link=link).loss.sum().backward()
        slopes[link] = policy.chosen.tokens.grad.item()
    assert slopes["savage"] == pytest.approx(-2.0 * math.exp(-20.0), rel=1e-8)  # sigmoid(20)^2 is 1 - 4e-9
    assert slopes["exponential"] == pytest.approx(-math.exp(20.0), rel=1e-15)
