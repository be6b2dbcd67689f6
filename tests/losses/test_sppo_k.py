"""SPPO on lists against sums worked by hand."""

import pytest
import torch

from prefopt.losses import sppo_k


def test_every_log_ratio_is_drawn_to_its_win_probability(lists):
    """Beta 0.5, wins 0.75, 0.25, 0.5: targets 0.5, -0.5, 0; ratios 1, 0, 2: (0.25 + 0.25 + 4) / 3 = 1.5."""
    policy, reference = lists([[-1.0], [-1.0], [-1.0]]), lists([[-2.0], [-1.0], [-3.0]])
    wins = torch.tensor([0.75, 0.25, 0.5], dtype=torch.float64)
    output = sppo_k(policy, reference, answer_score=wins, beta=0.5)
    assert output.loss.tolist() == pytest.approx([1.5], rel=1e-15)
    assert output.chosen_reward.tolist() == [0.5]
    assert output.rejected_reward.tolist() == [0.5]
