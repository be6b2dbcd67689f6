"""alpha-DPO against sums worked by hand."""

import math

import pytest
import torch

from prefopt.losses import alpha_margin


def cost(margin):
    return math.log1p(math.exp(-margin))


@pytest.fixture
def given(pairs):
    """Margins per token 1 and 3 of the policy (over two tokens and one), 0 of the reference: D = 1 and 3."""
    policy = pairs([[-1.0, -1.0], [-1.0]], [[-2.0], [-4.0, -4.0]])
    reference = pairs([[-1.0, -3.0], [-1.0]], [[-2.0], [-1.0, -1.0]])
    return policy, reference


def test_the_target_rises_with_the_z_score(given):
    """Mean 2, deviation root 2, z = -+0.707107; targets 1 -+ 0.707107 at gamma 1, beta 2, alpha 0.5.

    2 * 1 - 0.292893 = 1.707107 and 2 * 3 - 1.707107 = 4.292893: 0.166692 and 0.013573.
    """
    output = alpha_margin(*given, beta=2.0, gamma=1.0, alpha=0.5)
    z = 1 / math.sqrt(2)
    assert output.loss.tolist() == pytest.approx([cost(1 + z), cost(5 - z)], rel=1e-12)
    assert output.metrics["target"].tolist() == pytest.approx([1 - z, 1 + z], rel=1e-12)
    assert output.carried["margin_mean"].item() == 2
    assert output.carried["margin_std"].item() == pytest.approx(math.sqrt(2))


def test_later_steps_are_measured_by_the_moving_averages(given):
    """Averages 0 and 4 before: m = 0.1 * 2 = 0.2, s = 0.9 * 4 + 0.1 * 1.414214 = 3.741421."""
    state = {"margin_mean": torch.tensor(0.0).double(), "margin_std": torch.tensor(4.0).double()}
    output = alpha_margin(*given, beta=2.0, gamma=1.0, alpha=0.5, **state)
    std = 3.6 + 0.1 * math.sqrt(2)
    targets = [1 + (gap - 0.2) / std for gap in (1, 3)]
    assert output.metrics["target"].tolist() == pytest.approx(targets, rel=1e-12)
    assert output.loss.tolist() == pytest.approx([cost(2 - targets[0]), cost(6 - targets[1])], rel=1e-12)


def test_rewards_are_the_policys_own(given):
    """Beta times the mean log-prob: the score that the margin compares."""
    output = alpha_margin(*given, beta=2.0)
    assert output.chosen_reward.tolist() == [-2.0, -2.0]
    assert output.rejected_reward.tolist() == [-4.0, -8.0]


def test_sums_are_not_divided_by_lengths(given):
    """Policy margins -2 + 2 = 0 and -1 + 8 = 7, of the reference -2 and 1: D = 2 and 6."""
    output = alpha_margin(*given, beta=1.0, gamma=0.0, alpha=1.0, norm="sum")
    z = 1 / math.sqrt(2)
    assert output.carried["margin_mean"].item() == 4
    assert output.loss.tolist() == pytest.approx([cost(0 + z), cost(7 - z)], rel=1e-12)


def test_policy_equal_to_reference_is_simpo_with_its_target(pairs):
    """All D are 0, so no pair stands out: margin 2.5 * 1 - 1.5 = 1."""
    same = pairs([[-1.0], [-1.0]], [[-2.0], [-2.0]])
    output = alpha_margin(same, same)
    assert output.loss.tolist() == pytest.approx([cost(1.0)] * 2, rel=1e-12)
    assert output.carried["margin_std"].item() == 0


def test_the_target_is_held_constant(given):
    """The slope of the first pair is -beta sigmoid(-margin) / 2 per token, its z-score aside."""
    policy, reference = given
    policy.chosen.tokens.requires_grad_()
    alpha_margin(policy, reference, beta=2.0, gamma=1.0, alpha=0.5).loss.sum().backward()
    slope = -2.0 / (1 + math.exp(1 + 1 / math.sqrt(2))) / 2
    assert policy.chosen.tokens.grad[:2].tolist() == pytest.approx([slope, slope], rel=1e-12)
