"""DPO against sums worked by hand."""

import math

import pytest
import torch

from prefopt.losses import dpo


@pytest.fixture
def policy(pairs):
    """Log-ratios +1 and -1 against ``reference``: D = 2."""
    return pairs([[-1.0, -2.0]], [[-5.0]])


@pytest.fixture
def reference(pairs):
    return pairs([[-2.0, -2.0]], [[-4.0]])


def test_margin_of_two_nats_at_beta_one_tenth(policy, reference):
    """D = (-3 - -4) - (-5 - -4) = 2; log(1 + e^-0.2) = 0.598139."""
    output = dpo(policy, reference, beta=0.1)
    assert output.loss.tolist() == pytest.approx([0.598139], abs=1e-6)  # six digits are written above
    assert output.loss.item() == pytest.approx(math.log1p(math.exp(-0.2)), rel=1e-15)


def test_rewards_are_beta_times_the_log_ratio(policy, reference):
    """0.1 * (-3 - -4) = 0.1 and 0.1 * (-5 - -4) = -0.1."""
    output = dpo(policy, reference, beta=0.1)
    assert output.chosen_reward.tolist() == pytest.approx([0.1], rel=1e-15)
    assert output.rejected_reward.tolist() == pytest.approx([-0.1], rel=1e-15)


def test_margin_zero_costs_log_two_whatever_the_settings(policy):
    """D = 0, so both labels cost log 2 = 0.693147: (1 - e) log 2 + e log 2."""
    for beta, smoothing in [(0.1, 0.0), (3.0, 0.0), (0.1, 0.3)]:
        loss = dpo(policy, policy, beta=beta, label_smoothing=smoothing).loss
        assert loss.item() == pytest.approx(math.log(2.0), rel=1e-15)


def test_label_smoothing_mixes_in_the_flipped_label(policy, reference):
    """With m = 0.2 and e = 0.25: 0.75 * 0.598139 + 0.25 * (0.598139 + 0.2) = 0.648139."""
    loss = dpo(policy, reference, beta=0.1, label_smoothing=0.25).loss
    assert loss.item() == pytest.approx(0.648139, abs=1e-6)  # six digits are written above


def test_smoothed_loss_is_least_at_the_log_odds_of_the_label(pairs):
    """At e = 0.25 the slope -(1 - e) sigmoid(-m) + e sigmoid(m) = 0 at m = log(0.75 / 0.25) = 1.098612."""
    policy = pairs([[math.log(3.0)]], [[0.0]])
    policy.chosen.tokens.requires_grad_()
    loss = dpo(policy, pairs([[0.0]], [[0.0]]), beta=1.0, label_smoothing=0.25).loss
    loss.sum().backward()
    assert policy.chosen.tokens.grad.item() == pytest.approx(0.0, abs=1e-15)  # rounding of log 3


def test_gradient_is_beta_times_sigmoid_of_minus_margin(policy, reference):
    """-0.1 * sigmoid(-0.2) = -0.0450166 at every chosen token, the opposite at rejected ones."""
    policy.chosen.tokens.requires_grad_()
    policy.rejected.tokens.requires_grad_()
    dpo(policy, reference, beta=0.1).loss.sum().backward()
    assert policy.chosen.tokens.grad.tolist() == pytest.approx([-0.0450166] * 2, abs=1e-7)
    assert policy.rejected.tokens.grad.tolist() == pytest.approx([0.0450166], abs=1e-7)


def test_a_hopeless_pair_costs_its_margin_not_infinity(pairs):
    """At m = -25: log(1 + e^25) = 25.000000000014, where log(1 - sigmoid) in float32 is -inf."""
    loss = dpo(pairs([[-25.0]], [[0.0]]), pairs([[0.0]], [[0.0]]), beta=1.0).loss
    assert loss.item() == pytest.approx(25.0 + math.exp(-25.0), rel=1e-15)
    assert torch.isfinite(loss).all()
