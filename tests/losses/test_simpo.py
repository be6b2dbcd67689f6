"""SimPO against sums worked by hand."""

import math

import pytest

from prefopt.losses import simpo


@pytest.fixture
def policy(pairs):
    """Means -1.5 and -3."""
    return pairs([[-1.0, -2.0]], [[-2.0, -3.0, -4.0]])


def test_margin_of_means_beyond_gamma(policy):
    """2 * (-1.5 - -3) - 1 = 2; log(1 + e^-2) = 0.126928."""
    output = simpo(policy, beta=2.0, gamma=1.0)
    assert output.loss.tolist() == pytest.approx([0.126928], abs=1e-6)  # six digits are written above
    assert output.chosen_reward.tolist() == pytest.approx([-3.0], rel=1e-15)
    assert output.rejected_reward.tolist() == pytest.approx([-6.0], rel=1e-15)


def test_gamma_is_the_ratio_times_beta(policy):
    """The authors' -log sigmoid(beta * (margin - ratio)) with ratio 0.3 at beta 10 is gamma 3."""
    theirs = math.log1p(math.exp(-10.0 * (1.5 - 0.3)))
    assert simpo(policy, beta=10.0, gamma=0.3 * 10.0).loss.item() == pytest.approx(theirs, rel=1e-12)


def test_a_margin_of_gamma_costs_log_two(policy):
    """2 * 1.5 - 3 = 0."""
    assert simpo(policy, beta=2.0, gamma=3.0).loss.item() == pytest.approx(math.log(2.0), rel=1e-15)


def test_repeating_every_token_changes_nothing(pairs, policy):
    longer = pairs([[-1.0, -2.0] * 2], [[-2.0, -3.0, -4.0] * 3])
    assert simpo(longer).loss.item() == pytest.approx(simpo(policy).loss.item(), rel=1e-15)
