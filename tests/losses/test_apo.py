"""Anchored preference optimization against sums worked by hand."""

import pytest
import torch

from prefopt.losses import apo_down, apo_zero


def test_apo_zero(up_and_down):
    """Log-ratios +-1 at beta 0.1: (1 - sigmoid(0.1)) + sigmoid(-0.1) = 2 * 0.475021 = 0.950042."""
    output = apo_zero(*up_and_down, beta=0.1)
    assert output.loss.tolist() == pytest.approx([0.950042], abs=1e-6)  # six digits are written above
    assert output.chosen_reward.tolist() == pytest.approx([0.1], rel=1e-15)
    assert output.rejected_reward.tolist() == pytest.approx([-0.1], rel=1e-15)


def test_apo_down(up_and_down):
    """sigmoid(0.1) + (1 - sigmoid(0.2)) = 0.524979 + 0.450166 = 0.975145."""
    output = apo_down(*up_and_down, beta=0.1)
    assert output.loss.tolist() == pytest.approx([0.975145], abs=1e-6)  # six digits are written above
    assert output.chosen_reward.tolist() == pytest.approx([0.1], rel=1e-15)
    assert output.rejected_reward.tolist() == pytest.approx([-0.1], rel=1e-15)


@pytest.mark.parametrize("loss", [apo_zero, apo_down])
def test_log_ratios_of_zero_cost_one(up_and_down, loss):
    """Two halves."""
    policy, _ = up_and_down
    assert loss(policy, policy).loss.tolist() == [1.0]


def slopes(pairs, loss):
    policy, zero = pairs([[0.0]], [[0.0]]), pairs([[0.0]], [[0.0]])
    for side in (policy.chosen, policy.rejected):
        side.tokens.requires_grad_()
    loss(policy, zero, beta=1.0).loss.sum().backward()
    return policy.chosen.tokens.grad.item(), policy.rejected.tokens.grad.item()


def test_zero_raises_the_chosen_and_lowers_the_rejected(pairs):
    """-1 / 4 and 1 / 4 at the start."""
    assert slopes(pairs, apo_zero) == (-0.25, 0.25)


def test_down_lowers_the_rejected_and_starts_neutral_to_the_chosen(pairs):
    """1 / 4 from the anchor, -1 / 4 from the margin; beyond the start the anchor wins, as below."""
    assert slopes(pairs, apo_down) == (0.0, 0.25)


def test_down_lowers_both_once_the_margin_is_won(pairs):
    """At h = 0 and -3 the margin's slope is -sigmoid'(3) = -0.045177, the anchor's 0.25: sum 0.204823."""
    policy, zero = pairs([[0.0]], [[-3.0]]), pairs([[0.0]], [[0.0]])
    policy.chosen.tokens.requires_grad_()
    apo_down(policy, zero, beta=1.0).loss.sum().backward()
    assert policy.chosen.tokens.grad.item() == pytest.approx(0.204823, abs=1e-6)  # digits above


@pytest.mark.parametrize("loss", [apo_zero, apo_down])
def test_the_loss_is_bounded(pairs, loss):
    """All four corners far out lie within [0, 2]."""
    far = [[1e3], [1e3], [-1e3], [-1e3]]
    policy, zero = pairs(far, [far[i] for i in (0, 2, 0, 2)]), pairs([[0.0]] * 4, [[0.0]] * 4)
    values = loss(policy, zero, beta=1.0).loss
    assert torch.all((values >= 0.0) & (values <= 2.0))
