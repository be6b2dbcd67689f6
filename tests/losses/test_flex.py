"""Flex-DPO against sums worked by hand."""

import pytest

from prefopt.losses import flex


def test_each_answer_has_its_own_scale(up_and_down):
    """0.2 * 1 + 0.1 * 1 = 0.3; log(1 + e^-0.3) = 0.554355. Rewards 0.2 and -0.1."""
    output = flex(*up_and_down, beta_chosen=0.2, beta_rejected=0.1)
    assert output.loss.item() == pytest.approx(0.554355, abs=1e-6)  # six digits are written above
    assert output.chosen_reward.item() == pytest.approx(0.2, rel=1e-15)
    assert output.rejected_reward.item() == pytest.approx(-0.1, rel=1e-15)


def test_the_rejected_answer_is_pushed_less(up_and_down):
    """sigmoid(-0.3) = 0.425558: -0.2 and +0.1 times that."""
    policy, reference = up_and_down
    policy.chosen.tokens.requires_grad_()
    policy.rejected.tokens.requires_grad_()
    flex(policy, reference, beta_chosen=0.2, beta_rejected=0.1).loss.sum().backward()
    assert policy.chosen.tokens.grad.tolist() == pytest.approx([-0.0851115] * 2, abs=1e-7)
    assert policy.rejected.tokens.grad.tolist() == pytest.approx([0.0425558], abs=1e-7)


def test_without_a_rejected_scale_only_the_chosen_answer_counts(up_and_down, pairs):
    policy, reference = up_and_down
    other = pairs([policy.chosen.tokens.tolist()], [[-9.0]])
    losses = [flex(side, reference, beta_rejected=0.0).loss.item() for side in (policy, other)]
    assert losses[0] == losses[1]
