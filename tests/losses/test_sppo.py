"""SPPO against sums worked by hand."""

import pytest
import torch

from prefopt.losses import sppo, sppo_hard


def chances(chosen, rejected):
    return {
        "chosen_score": torch.tensor([chosen], dtype=torch.float64),
        "rejected_score": torch.tensor([rejected], dtype=torch.float64),
    }


def test_targets_are_the_centred_chances_over_beta(up_and_down):
    """At beta 0.1, P 0.8 and 0.4: targets 3 and -1; 0.5 * (1 - 3)^2 + 0.5 * (-1 - -1)^2 = 2."""
    output = sppo(*up_and_down, **chances(0.8, 0.4), beta=0.1)
    assert output.loss.tolist() == pytest.approx([2.0], rel=1e-14)
    assert output.chosen_reward.tolist() == pytest.approx([0.1], rel=1e-15)
    assert output.rejected_reward.tolist() == pytest.approx([-0.1], rel=1e-15)


def test_an_even_chance_asks_for_no_change(up_and_down):
    policy, _ = up_and_down
    assert sppo(policy, policy, **chances(0.5, 0.5)).loss.tolist() == [0.0]


def test_hard_targets(up_and_down):
    """At beta 0.1: targets 5 and -5; 0.5 * (1 - 5)^2 + 0.5 * (-1 + 5)^2 = 16."""
    assert sppo_hard(*up_and_down, beta=0.1).loss.tolist() == pytest.approx([16.0], rel=1e-15)


def test_hard_is_least_at_half_over_beta(pairs):
    """At beta 0.25: h = 2 and -2 cost nothing."""
    policy, zero = pairs([[2.0]], [[-2.0]]), pairs([[0.0]], [[0.0]])
    assert sppo_hard(policy, zero, beta=0.25).loss.tolist() == [0.0]
