"""WPO against sums worked by hand."""

import math

import pytest

from prefopt.losses import dpo, wpo
from prefopt.types import PairLogps


@pytest.fixture
def policy(answers):
    """First pair: A = 0.5 and -0.8. Second: A = 1 and 0.25."""
    return PairLogps(
        chosen=answers([[-1.0, -2.0], [-1.0]], log_sum_p2=[[-1.25, -2.75], [-2.0]]),
        rejected=answers([[-1.0], [-0.5, -0.5]], log_sum_p2=[[-0.2], [-1.0, -0.5]]),
    )


@pytest.fixture
def reference(pairs):
    return pairs([[-2.0, -3.0], [-1.0]], [[-1.0], [-1.0, -1.0]])


def test_weight_is_the_capped_product_of_both_likelihoods(policy, reference):
    """A = (0.25 + 0.75) / 2 + (-1 + 0.2) = -0.3: e^-0.3 = 0.740818; A = 1 + 0.25 > 0: capped at 1."""
    weight = wpo(policy, reference).metrics["weight"]
    assert weight.tolist() == pytest.approx([0.740818, 1.0], abs=1e-6)  # six digits are written above


def test_loss_is_the_weight_times_dpo(policy, reference):
    """D = 2, m = 0.2: 0.740818 * 0.598139 = 0.443112. D = -1, m = -0.1: 1 * log(1 + e^0.1) = 0.744397."""
    output = wpo(policy, reference, beta=0.1)
    assert output.loss.tolist() == pytest.approx([0.443112, 0.744397], abs=1e-6)
    plain = dpo(policy, reference, beta=0.1)
    assert output.chosen_reward.tolist() == plain.chosen_reward.tolist()
    assert output.rejected_reward.tolist() == plain.rejected_reward.tolist()


def test_a_higher_cap_lets_the_weight_through(policy, reference):
    """e^1.25 = 3.490343."""
    weight = wpo(policy, reference, max_weight=10.0).metrics["weight"]
    assert weight.tolist()[1] == pytest.approx(3.490343, abs=1e-6)


def test_the_weight_has_no_gradient(policy, reference):
    """-w * beta * sigmoid(-m) = -0.740818 * 0.1 * 0.450166 = -0.033349 at each chosen token of pair 0."""
    policy.chosen.tokens.requires_grad_()
    policy.chosen.stats["log_sum_p2"].requires_grad_()
    wpo(policy, reference, beta=0.1).loss.sum().backward()
    expected = -math.exp(-0.3) * 0.1 / (1.0 + math.exp(0.2))
    assert policy.chosen.tokens.grad.tolist()[:2] == pytest.approx([expected] * 2, rel=1e-13)
    assert expected == pytest.approx(-0.033349, abs=1e-6)
    assert policy.chosen.stats["log_sum_p2"].grad is None
