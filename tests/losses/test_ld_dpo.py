"""LD-DPO against sums worked by hand."""

import math

import pytest

from prefopt.losses import dpo, ld_dpo


@pytest.fixture
def policy(pairs):
    """The chosen answer is two tokens longer; then the rejected one is."""
    return pairs([[-1.0, -2.0, -4.0], [-1.0]], [[-3.0], [-2.0, -1.0]])


@pytest.fixture
def reference(pairs):
    return pairs([[-1.0, -1.0, -2.0], [-2.0]], [[-2.0], [-2.0, -3.0]])


def test_tail_tokens_count_alpha_on_both_models(policy, reference):
    """Chosen: (-1 - 3) - (-1 - 1.5) = -1.5; rejected -3 - -2 = -1; m = 0.1 * -0.5: log(1 + e^0.05) = 0.718460.

    Second pair: chosen 1; rejected (-2 - 0.5) - (-2 - 1.5) = 1; m = 0: log 2.
    """
    output = ld_dpo(policy, reference, beta=0.1, alpha=0.5)
    assert output.loss.tolist() == pytest.approx([0.718460, math.log(2.0)], abs=1e-6)  # digits written above
    assert output.chosen_reward.tolist() == pytest.approx([-0.15, 0.1], rel=1e-14)
    assert output.rejected_reward.tolist() == pytest.approx([-0.1, 0.1], rel=1e-14)


def test_policy_only_leaves_the_reference_sums_whole(policy, reference):
    """Chosen: -4 - -4 = 0; rejected -1; m = 0.1: log(1 + e^-0.1) = 0.644397."""
    loss = ld_dpo(policy, reference, beta=0.1, alpha=0.5, apply_to_reference=False).loss
    assert loss[0].item() == pytest.approx(0.644397, abs=1e-6)


def test_alpha_zero_cuts_the_longer_answer(pairs, policy, reference):
    cut = pairs([[-1.0], [-1.0]], [[-3.0], [-2.0]]), pairs([[-1.0], [-2.0]], [[-2.0], [-2.0]])
    assert ld_dpo(policy, reference, alpha=0.0).loss.tolist() == dpo(*cut).loss.tolist()


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_equal_models_cost_log_two_for_any_alpha(policy, alpha):
    """Both sums are reweighted alike, so D = 0; reweighting the policy alone would not give that."""
    assert ld_dpo(policy, policy, alpha=alpha).loss.tolist() == pytest.approx([math.log(2.0)] * 2, rel=1e-15)


def test_equal_lengths_are_plain_dpo(pairs):
    equal = pairs([[-1.0, -2.0]], [[-3.0, -1.0]]), pairs([[-1.5, -2.0]], [[-2.0, -2.0]])
    assert ld_dpo(*equal, alpha=0.1).loss.tolist() == dpo(*equal).loss.tolist()
