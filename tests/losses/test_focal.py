"""FocalPO against sums worked by hand, and the sign of its gradient."""

import math

import pytest

from prefopt.losses import focal


@pytest.fixture
def policy(pairs):
    """D = 2 and D = -2 against zeros."""
    return pairs([[-1.0, 2.0], [-1.0, 0.0]], [[-1.0], [1.0]])


@pytest.fixture
def reference(pairs):
    return pairs([[0.0, 0.0], [0.0, 0.0]], [[0.0], [0.0]])


def test_loss_is_dpo_times_a_power_of_the_probability(policy, reference):
    """At m = 0.2: p = 0.549834, p^0.05 = e^(-0.05 * 0.598139) = 0.970536, times 0.598139 = 0.580515.

    At m = -0.2: p = 0.450166, p^0.05 = e^(-0.05 * 0.798139) = 0.960880, times 0.798139 = 0.766915.
    """
    output = focal(policy, reference, beta=0.1)
    assert output.loss.tolist() == pytest.approx([0.580515, 0.766915], abs=1e-6)  # digits written above
    assert output.chosen_reward.tolist() == pytest.approx([0.1, -0.1], rel=1e-14)
    assert output.rejected_reward.tolist() == pytest.approx([-0.1, 0.1], rel=1e-14)


def test_a_misranked_pair_weighs_less(policy, reference):
    right, wrong = (
        focal(policy, reference, gamma=1.0).loss / focal(policy, reference, gamma=0.0).loss
    ).tolist()
    assert wrong < right < 1.0


def slope_at_zero(pairs, gamma, detach_weight):
    policy = pairs([[0.0]], [[0.0]])
    policy.chosen.tokens.requires_grad_()
    focal(
        policy, pairs([[0.0]], [[0.0]]), beta=1.0, gamma=gamma, detach_weight=detach_weight
    ).loss.sum().backward()
    return policy.chosen.tokens.grad.item()


@pytest.mark.parametrize("gamma", [0.05, 1.0, 2.0])
def test_slope_at_margin_zero_is_that_of_the_product(pairs, gamma):
    """d/dm of -p^g log p at p = 1/2: -(g log p + 1) p^g (1 - p); positive, so reversed, from g = 1 / log 2 = 1.44."""
    expected = -(gamma * math.log(0.5) + 1.0) * 0.5**gamma * 0.5
    assert slope_at_zero(pairs, gamma, detach_weight=False) == pytest.approx(expected, rel=1e-14)
    assert (expected > 0) == (gamma == 2.0)


def test_a_detached_weight_never_turns_the_gradient_round(pairs):
    """-p^2 (1 - p) at p = 1/2: -0.125."""
    assert slope_at_zero(pairs, gamma=2.0, detach_weight=True) == pytest.approx(-0.125, rel=1e-15)
