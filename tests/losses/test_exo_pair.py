"""EXO on pairs against sums worked by hand, and where its margins settle."""

import math

import pytest
import torch

from prefopt.losses import exo_pref, exo_rw


def scores(chosen, rejected):
    return {
        "chosen_score": torch.tensor([chosen], dtype=torch.float64),
        "rejected_score": torch.tensor([rejected], dtype=torch.float64),
    }


def test_exo_pref_at_a_margin_of_a_fifth(up_and_down):
    """With q = sigmoid(0.2): 0.549834 * (-0.598139 - log 0.9) + 0.450166 * (-0.798139 - log 0.1) = 0.406304."""
    output = exo_pref(*up_and_down, beta=0.1, label_smoothing=0.1)
    assert output.loss.tolist() == pytest.approx([0.406304], abs=1e-6)  # six digits are written above
    assert output.chosen_reward.tolist() == pytest.approx([0.1], rel=1e-15)
    assert output.rejected_reward.tolist() == pytest.approx([-0.1], rel=1e-15)


def test_exo_rw_at_a_margin_of_a_fifth(up_and_down):
    """Gap 0.5 at beta_r 0.5: t = sigmoid(1), log t = -0.313262, log(1 - t) = -1.313262.

    0.549834 * (-0.598139 + 0.313262) + 0.450166 * (-0.798139 + 1.313262) = 0.075256.
    """
    output = exo_rw(*up_and_down, **scores(2.0, 1.5), beta=0.1, beta_r=0.5)
    assert output.loss.tolist() == pytest.approx([0.075256], abs=1e-6)  # six digits are written above
    assert output.chosen_reward.tolist() == pytest.approx([0.1], rel=1e-15)


def test_exo_pref_is_zero_and_flat_at_the_log_odds_of_the_label(pairs):
    """At e = 0.25: q = 0.75 at m = log 3, and KL(q || q) = 0."""
    policy, zero = pairs([[math.log(3.0)]], [[0.0]]), pairs([[0.0]], [[0.0]])
    policy.chosen.tokens.requires_grad_()
    loss = exo_pref(policy, zero, beta=1.0, label_smoothing=0.25).loss
    loss.sum().backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-15)  # rounding of log 3
    assert policy.chosen.tokens.grad.item() == pytest.approx(0.0, abs=1e-15)


def test_exo_rw_settles_at_the_gap_over_beta_r(up_and_down):
    """At m = 0.1 * 2 = 0.2 = (1.3 - 1.2) / 0.5; a tie settles at m = 0."""
    policy, reference = up_and_down
    settled = exo_rw(policy, reference, **scores(1.3, 1.2), beta=0.1, beta_r=0.5).loss
    assert settled.item() == pytest.approx(0.0, abs=1e-15)  # rounding of 1.3 - 1.2
    assert exo_rw(policy, policy, **scores(1.0, 1.0)).loss.item() == pytest.approx(0.0, abs=1e-15)


def test_a_gap_of_the_log_odds_makes_exo_rw_exo_pref(up_and_down):
    """(r_w - r_l) / beta_r = log((1 - e) / e)."""
    smoothing = 0.07
    rewarded = exo_rw(*up_and_down, **scores(math.log((1 - smoothing) / smoothing), 0.0), beta_r=1.0).loss
    labelled = exo_pref(*up_and_down, label_smoothing=smoothing).loss
    assert rewarded.item() == pytest.approx(labelled.item(), rel=1e-14)


def test_a_hopeless_pair_is_given_up(pairs):
    """Slope q (1 - q) (m - log((1 - e) / e)), which fades as e^m: at m = -40 it is below 1e-15."""
    policy, zero = pairs([[-40.0]], [[0.0]]), pairs([[0.0]], [[0.0]])
    policy.chosen.tokens.requires_grad_()
    exo_pref(policy, zero, beta=1.0).loss.sum().backward()
    assert -1e-15 < policy.chosen.tokens.grad.item() < 0.0
