"""AlphaPO against sums worked by hand, and its limits."""

import math

import pytest
import torch

from prefopt.losses import alphapo, simpo


@pytest.fixture
def policy(pairs):
    """Mean probabilities 1/2 and 1/4."""
    return pairs([[2.0 * math.log(0.5), 0.0]], [[math.log(0.25)]])


def test_margin_of_bent_rewards(policy):
    """At alpha 1: u = 1 - 2 = -1 and 1 - 4 = -3; 0.5 * 2 - 0.5 = 0.5; log(1 + e^-0.5) = 0.474077."""
    output = alphapo(policy, beta=0.5, gamma=0.5, alpha=1.0)
    assert output.loss.item() == pytest.approx(0.474077, abs=1e-6)  # six digits are written above
    assert output.chosen_reward.item() == pytest.approx(-0.5, rel=1e-15)
    assert output.rejected_reward.item() == pytest.approx(-1.5, rel=1e-15)


def test_a_negative_alpha_flattens_the_reward(policy):
    """At alpha -1: u = p - 1 = -1/2 and -3/4; 2 * 1/4 = 0.5."""
    loss = alphapo(policy, beta=2.0, gamma=0.0, alpha=-1.0).loss
    assert loss.item() == pytest.approx(0.474077, abs=1e-6)


def test_the_less_likely_answer_pulls_more_for_a_positive_alpha(policy):
    """du/da = exp(-alpha * a): 2 and 4 at alpha 1, against 1 and 1 in SimPO."""
    policy.chosen.tokens.requires_grad_()
    policy.rejected.tokens.requires_grad_()
    alphapo(policy, alpha=1.0).loss.sum().backward()
    per_mean = -2.0 * policy.chosen.tokens.grad[0].item(), policy.rejected.tokens.grad.item()
    assert per_mean[1] / per_mean[0] == pytest.approx(2.0, rel=1e-14)


def test_a_small_alpha_keeps_its_digits(policy):
    """1 - exp(-1e-12 * a) loses four digits in float64; the limit is SimPO's."""
    one = alphapo(policy, beta=2.0, gamma=0.3, alpha=1e-12).loss.item()
    assert one == pytest.approx(simpo(policy, beta=2.0, gamma=0.3).loss.item(), rel=1e-11)


def test_an_answer_beyond_the_clamp_costs_a_finite_loss_and_has_no_gradient(pairs):
    """Mean -1000 at alpha 0.25: exp(250) is infinite in float32; beyond 80 the exponent is held."""
    policy = pairs([[-1000.0]], [[-1.0]])
    policy.chosen.tokens.requires_grad_()
    loss = alphapo(policy).loss
    loss.sum().backward()
    assert loss.item() == pytest.approx(2.5 * math.exp(80.0) / 0.25, rel=1e-6)
    assert torch.equal(policy.chosen.tokens.grad, torch.zeros(1, dtype=torch.float64))


def test_label_smoothing_mixes_in_the_flipped_label(policy):
    """A margin of 0.5: 0.75 * 0.474077 + 0.25 * 0.974077 = 0.599077."""
    loss = alphapo(policy, beta=0.5, gamma=0.5, alpha=1.0, label_smoothing=0.25).loss
    assert loss.item() == pytest.approx(0.599077, abs=1e-6)
