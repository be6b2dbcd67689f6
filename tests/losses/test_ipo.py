"""IPO against sums worked by hand, in both norms."""

import pytest

from prefopt.losses import ipo


@pytest.fixture
def policy(pairs):
    """Log-ratio +1 over two tokens, -1 over one."""
    return pairs([[-1.0, -2.0]], [[-5.0]])


@pytest.fixture
def reference(pairs):
    return pairs([[-2.0, -2.0]], [[-4.0]])


def test_mean_divides_each_log_ratio_by_its_own_length(policy, reference):
    """Margin 1 / 2 - -1 / 1 = 1.5; target 1 / (2 * 0.5) = 1; (1.5 - 1)^2 = 0.25."""
    output = ipo(policy, reference, beta=0.5)
    assert output.loss.tolist() == pytest.approx([0.25], rel=1e-15)
    assert output.chosen_reward.tolist() == pytest.approx([0.5 * 0.5], rel=1e-15)
    assert output.rejected_reward.tolist() == pytest.approx([0.5 * -1.0], rel=1e-15)


def test_sum_does_not_divide(policy, reference):
    """Margin 1 - -1 = 2; target 1; (2 - 1)^2 = 1."""
    output = ipo(policy, reference, beta=0.5, norm="sum")
    assert output.loss.tolist() == pytest.approx([1.0], rel=1e-15)
    assert output.chosen_reward.tolist() == pytest.approx([0.5], rel=1e-15)
    assert output.rejected_reward.tolist() == pytest.approx([-0.5], rel=1e-15)


def test_margin_zero_costs_the_squared_target(policy):
    """1 / (4 * 0.1^2) = 25."""
    assert ipo(policy, policy, beta=0.1).loss.item() == pytest.approx(25.0, rel=1e-15)


def test_repeating_every_token_leaves_the_mean_norm_alone(pairs, policy, reference):
    """Twice the log-ratio over twice the tokens is the same mean; the sum norm doubles: (4 - 1)^2 = 9."""
    twice = pairs([[-1.0, -2.0] * 2], [[-5.0] * 2]), pairs([[-2.0, -2.0] * 2], [[-4.0] * 2])
    assert ipo(*twice, beta=0.5).loss.item() == pytest.approx(0.25, rel=1e-15)
    assert ipo(*twice, beta=0.5, norm="sum").loss.item() == pytest.approx(9.0, rel=1e-15)


def test_the_norms_agree_on_answers_of_one_token(pairs):
    one = pairs([[-1.0]], [[-5.0]]), pairs([[-2.0]], [[-4.5]])
    assert ipo(*one, norm="mean").loss.item() == ipo(*one, norm="sum").loss.item()


def test_overshooting_costs_as_much_as_falling_short(pairs):
    """Target 1: margins 0.25 and 1.75 both cost 0.75^2 = 0.5625."""
    policy, reference = pairs([[0.0], [1.5]], [[-0.25], [-0.25]]), pairs([[0.0]] * 2, [[0.0]] * 2)
    assert ipo(policy, reference, beta=0.5).loss.tolist() == pytest.approx([0.5625, 0.5625], rel=1e-15)
