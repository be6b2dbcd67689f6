"""BCO on pairs against sums worked by hand."""

import math

import pytest

from prefopt.losses import bco_pair


def test_log_ratios_of_plus_and_minus_one(up_and_down):
    """At beta 0.1: log(1 + e^-0.1) twice, 2 * 0.644397 = 1.288793."""
    output = bco_pair(*up_and_down, beta=0.1)
    assert output.loss.tolist() == pytest.approx([1.288793], abs=1e-6)  # six digits are written above
    assert output.chosen_reward.tolist() == pytest.approx([0.1], rel=1e-15)
    assert output.rejected_reward.tolist() == pytest.approx([-0.1], rel=1e-15)


def test_log_ratios_of_zero_cost_two_log_two(up_and_down):
    policy, _ = up_and_down
    assert bco_pair(policy, policy).loss.item() == pytest.approx(2.0 * math.log(2.0), rel=1e-15)


def test_shifting_both_log_ratios_costs_more_though_the_margin_stays(pairs):
    """With h = (3, 3) against (0, 0) at beta 1: log(1 + e^-3) + log(1 + e^3) = 3.097175 > 2 log 2."""
    policy, zero = pairs([[3.0]], [[3.0]]), pairs([[0.0]], [[0.0]])
    assert bco_pair(policy, zero, beta=1.0).loss.item() == pytest.approx(3.097175, abs=1e-6)  # digits above
