"""SimPO against sums worked by hand."""

import math

import pytest

from prefopt.errors import RecipeError
from prefopt.losses import bound, simpo


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


def test_label_smoothing_mixes_in_the_flipped_label(policy):
    """A margin of 2: 0.75 * 0.126928 + 0.25 * 2.126928 = 0.626928."""
    loss = simpo(policy, beta=2.0, gamma=1.0, label_smoothing=0.25).loss
    assert loss.item() == pytest.approx(0.626928, abs=1e-6)


def test_the_hinge_asks_for_one_beyond_gamma(policy):
    """1 - (1 * 1.5 - 1) = 0.5, and nothing at 2 * 1.5 - 1 = 2."""
    output = simpo(policy, beta=1.0, gamma=1.0, link="hinge")
    assert output.loss.tolist() == [0.5]
    assert output.chosen_reward.tolist() == [-1.5]
    assert simpo(policy, beta=2.0, gamma=1.0, link="hinge").loss.tolist() == [0.0]


def test_a_hinge_that_would_not_be_smoothed_is_refused():
    with pytest.raises(
        RecipeError,
        match=r"label_smoothing: 0.1 has no effect with link: hinge. Leave it out, or set link: logistic.",
    ):
        bound(simpo, link="hinge", label_smoothing=0.1)
