"""Cal-DPO against sums worked by hand."""

import pytest

from prefopt.losses import cal_dpo


def test_on_target_only_the_logistic_term_is_left(up_and_down):
    """At beta 0.5: targets +-1 are met; log(1 + e^-2) = 0.126928, with no beta inside."""
    output = cal_dpo(*up_and_down, beta=0.5)
    assert output.loss.tolist() == pytest.approx([0.126928], abs=1e-6)  # six digits are written above
    assert output.chosen_reward.tolist() == pytest.approx([0.5], rel=1e-15)
    assert output.rejected_reward.tolist() == pytest.approx([-0.5], rel=1e-15)


def test_off_target_costs_half_the_squares(up_and_down):
    """At beta 0.25: targets +-2; 0.126928 + 0.5 * (1 - 2)^2 + 0.5 * (-1 + 2)^2 = 1.126928."""
    assert cal_dpo(*up_and_down, beta=0.25).loss.tolist() == pytest.approx([1.126928], abs=1e-6)


def test_shifting_both_log_ratios_costs_the_squares_of_the_shift(pairs):
    """At beta 0.5, h = (1, -1) + 3: 0.126928 + 0.5 * 9 + 0.5 * 9 = 9.126928."""
    policy, zero = pairs([[4.0]], [[2.0]]), pairs([[0.0]], [[0.0]])
    assert cal_dpo(policy, zero, beta=0.5).loss.tolist() == pytest.approx([9.126928], abs=1e-6)
