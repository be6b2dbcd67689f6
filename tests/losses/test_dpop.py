"""DPOP against sums worked by hand."""

import pytest

from prefopt.losses import dpo, dpop


@pytest.fixture
def fallen(pairs):
    """Log-ratios -1 and -4: D = 3, and the chosen answer has lost one nat."""
    return pairs([[-3.0]], [[-5.0]]), pairs([[-2.0]], [[-1.0]])


def test_above_the_reference_it_is_dpo(up_and_down):
    """Log-ratio +1, so nothing is given up: m = 0.2, loss 0.598139."""
    output = dpop(*up_and_down, beta=0.1, lam=50.0)
    assert output.loss.item() == dpo(*up_and_down, beta=0.1).loss.item()
    assert output.loss.item() == pytest.approx(0.598139, abs=1e-6)  # six digits are written above


def test_a_nat_lost_by_the_chosen_answer_costs_lam_nats_of_margin(fallen):
    """0.5 * (3 - 2 * 1) = 0.5; log(1 + e^-0.5) = 0.474077. Rewards: 0.5 * -1 and 0.5 * -4."""
    output = dpop(*fallen, beta=0.5, lam=2.0)
    assert output.loss.item() == pytest.approx(0.474077, abs=1e-6)  # six digits are written above
    assert output.chosen_reward.item() == pytest.approx(-0.5, rel=1e-15)
    assert output.rejected_reward.item() == pytest.approx(-2.0, rel=1e-15)


def test_below_the_reference_the_chosen_answer_pulls_harder(fallen):
    """sigmoid(-0.5) = 0.377541: the chosen token gets -0.5 * (1 + 2) * that, the rejected one +0.5 * that."""
    policy, reference = fallen
    policy.chosen.tokens.requires_grad_()
    policy.rejected.tokens.requires_grad_()
    dpop(policy, reference, beta=0.5, lam=2.0).loss.sum().backward()
    assert policy.chosen.tokens.grad.item() == pytest.approx(-0.566311, abs=1e-6)
    assert policy.rejected.tokens.grad.item() == pytest.approx(0.188770, abs=1e-6)


def test_the_penalty_lies_within_beta(fallen):
    """Outside it would be 0.5 * 3 - 2 * 1 = -0.5 and cost 0.974077."""
    assert dpop(*fallen, beta=0.5, lam=2.0).loss.item() < 0.5
