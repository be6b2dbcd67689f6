"""The hinge against sums worked by hand."""

import pytest

from prefopt.losses import hinge


def test_a_margin_below_one_costs_the_rest(up_and_down):
    """D = 2 at beta 0.1: 1 - 0.2 = 0.8."""
    output = hinge(*up_and_down, beta=0.1)
    assert output.loss.tolist() == pytest.approx([0.8], rel=1e-15)
    assert output.chosen_reward.tolist() == pytest.approx([0.1], rel=1e-15)
    assert output.rejected_reward.tolist() == pytest.approx([-0.1], rel=1e-15)


def test_a_margin_beyond_one_costs_nothing_and_has_no_gradient(up_and_down):
    """D = 2 at beta 0.6: 1 - 1.2 < 0."""
    policy, reference = up_and_down
    policy.chosen.tokens.requires_grad_()
    loss = hinge(policy, reference, beta=0.6).loss
    loss.sum().backward()
    assert loss.tolist() == [0.0]
    assert policy.chosen.tokens.grad.tolist() == [0.0, 0.0]


def test_every_pair_short_of_the_margin_pulls_alike(pairs):
    """Margins 0.9 and -50 at beta 1: slope -1 both."""
    policy, zero = pairs([[0.9], [-50.0]], [[0.0]] * 2), pairs([[0.0]] * 2, [[0.0]] * 2)
    policy.chosen.tokens.requires_grad_()
    loss = hinge(policy, zero, beta=1.0).loss
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([0.1, 51.0], rel=1e-14)
    assert policy.chosen.tokens.grad.tolist() == [-1.0, -1.0]
