"""NCA on pairs against sums worked by hand."""

import math

import pytest
import torch.nn.functional as F

from prefopt.losses import bco_pair, nca_pair


def test_log_ratios_of_plus_and_minus_one(up_and_down):
    """At beta 0.1: 0.644397 + 0.5 * 0.744397 + 0.5 * 0.644397 = 1.338793."""
    output = nca_pair(*up_and_down, beta=0.1)
    assert output.loss.tolist() == pytest.approx([1.338793], abs=1e-6)  # six digits are written above
    assert output.chosen_reward.tolist() == pytest.approx([0.1], rel=1e-15)
    assert output.rejected_reward.tolist() == pytest.approx([-0.1], rel=1e-15)


def test_log_ratios_of_zero_cost_two_log_two(up_and_down):
    policy, _ = up_and_down
    assert nca_pair(policy, policy).loss.item() == pytest.approx(2.0 * math.log(2.0), rel=1e-15)


def slopes(pairs, chosen, rejected):
    policy, zero = pairs([[chosen]], [[rejected]]), pairs([[0.0]], [[0.0]])
    for side in (policy.chosen, policy.rejected):
        side.tokens.requires_grad_()
    nca_pair(policy, zero, beta=1.0).loss.sum().backward()
    return policy.chosen.tokens.grad.item(), policy.rejected.tokens.grad.item()


def test_both_answers_are_pulled_alike_at_the_start(pairs):
    """-1 / 2 + 1 / 4 and 1 / 4."""
    assert slopes(pairs, 0.0, 0.0) == (-0.25, 0.25)


def test_the_chosen_reward_settles_at_log_two(pairs):
    """-sigmoid(-x) + sigmoid(x) / 2 = 0 where sigmoid(x) = 2 / 3."""
    assert slopes(pairs, math.log(2.0), 0.0)[0] == pytest.approx(0.0, abs=1e-15)  # rounding of log 2


def test_it_is_bco_with_half_a_rejected_term_moved_to_the_chosen(up_and_down):
    """NCA = BCO - 0.5 log sigmoid(-b h_w) + 0.5 log sigmoid(-b h_l), with h_w = 1 and h_l = -1."""
    policy, reference = up_and_down
    chosen = policy.chosen.total - reference.chosen.total
    rejected = policy.rejected.total - reference.rejected.total
    moved = 0.5 * (F.logsigmoid(-0.1 * rejected) - F.logsigmoid(-0.1 * chosen))
    expected = bco_pair(policy, reference, beta=0.1).loss + moved
    assert nca_pair(policy, reference, beta=0.1).loss.item() == pytest.approx(expected.item(), rel=1e-15)
