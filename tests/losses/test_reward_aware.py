"""Reward-aware PO against sums worked by hand, and the losses it contains."""

import math

import pytest
import torch

from prefopt.losses import ipo, reward_aware, soft_label


def scores(chosen, rejected):
    return {
        "chosen_score": torch.tensor([chosen], dtype=torch.float64),
        "rejected_score": torch.tensor([rejected], dtype=torch.float64),
    }


ONE = scores(1.5, 0.5)


@pytest.mark.parametrize(
    ("divergence", "expected"), [("backward_kl", 0.010800), ("forward_kl", 0.010988), ("squared", 0.09)]
)
def test_the_three_divergences(up_and_down, divergence, expected):
    """At m = 0.2, T = 0.5: q = 0.549834, t = 0.622459.

    backward: 0.622459 log(0.622459 / 0.549834) + 0.377541 log(0.377541 / 0.450166) = 0.010800;
    forward: 0.549834 log(0.549834 / 0.622459) + 0.450166 log(0.450166 / 0.377541) = 0.010988;
    squared: (0.2 - 0.5)^2 = 0.09.
    """
    output = reward_aware(*up_and_down, beta=0.1, eta=0.5, divergence=divergence, **ONE)
    assert output.loss.item() == pytest.approx(expected, abs=1e-6)  # six digits are written above
    assert output.chosen_reward.item() == pytest.approx(0.1, rel=1e-15)


@pytest.mark.parametrize("divergence", ["backward_kl", "forward_kl", "squared"])
def test_a_margin_as_the_scores_ask_for_costs_nothing_and_stays(up_and_down, divergence):
    """T = 0.2 * (1.5 - 0.5) = m."""
    policy, reference = up_and_down
    policy.chosen.tokens.requires_grad_()
    loss = reward_aware(policy, reference, beta=0.1, eta=0.2, divergence=divergence, **ONE).loss
    loss.sum().backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-16)  # a rounding of terms near 0.1
    assert policy.chosen.tokens.grad.tolist() == pytest.approx([0.0, 0.0], abs=1e-16)


@pytest.mark.parametrize("divergence", ["backward_kl", "forward_kl", "squared"])
def test_too_wide_a_margin_is_pulled_back(up_and_down, divergence):
    """T = 0.1, m = 0.2: the slope at a chosen token is positive."""
    policy, reference = up_and_down
    policy.chosen.tokens.requires_grad_()
    reward_aware(policy, reference, beta=0.1, eta=0.1, divergence=divergence, **ONE).loss.sum().backward()
    assert (policy.chosen.tokens.grad > 0).all()


def test_norm_mean_divides_by_the_length(up_and_down):
    """0.1 * (1 / 2 + 1 / 1) = 0.15, T = 0.5: (0.15 - 0.5)^2 = 0.1225."""
    loss = reward_aware(*up_and_down, beta=0.1, eta=0.5, divergence="squared", norm="mean", **ONE).loss
    assert loss.item() == pytest.approx(0.1225, rel=1e-12)


def test_backward_kl_is_soft_label_less_the_entropy_of_the_label(up_and_down):
    """The entropy of t = sigmoid(0.5) is 0.662847."""
    label = torch.tensor([0.5], dtype=torch.float64).sigmoid()
    soft = soft_label(*up_and_down, soft_label=label).loss
    kl = reward_aware(*up_and_down, beta=0.1, eta=0.5, **ONE).loss
    assert (soft - kl).item() == pytest.approx(0.662847, abs=1e-6)  # six digits are written above


def test_squared_with_one_gap_for_all_is_ipo(up_and_down):
    """At beta 1 and T = 1 / (2 * 0.1) = 5."""
    loss = reward_aware(*up_and_down, beta=1.0, eta=5.0, divergence="squared", norm="mean", **ONE).loss
    assert loss.item() == pytest.approx(ipo(*up_and_down, beta=0.1).loss.item(), rel=1e-15)


def test_scores_far_apart_make_it_dpo(up_and_down):
    """At t = 1: -log q = log(1 + e^-0.2)."""
    loss = reward_aware(*up_and_down, beta=0.1, eta=1e4, **ONE).loss
    assert loss.item() == pytest.approx(math.log1p(math.exp(-0.2)), rel=1e-14)
