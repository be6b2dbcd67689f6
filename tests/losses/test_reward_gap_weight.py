"""OPTune's weight against sums worked by hand."""

import pytest
import torch

from prefopt.errors import RecipeError
from prefopt.losses import dpo, reward_gap_weight, simpo, weighted


def scores(chosen, rejected):
    return {
        "chosen_score": torch.tensor([chosen], dtype=torch.float64),
        "rejected_score": torch.tensor([rejected], dtype=torch.float64),
    }


def test_the_loss_is_multiplied_and_the_rewards_are_not(up_and_down):
    """sigmoid(2 * 0.5) = 0.731059, times 0.598139 = 0.437275."""
    output = reward_gap_weight(dpo, scale=2.0)(*up_and_down, **scores(1.0, 0.5))
    assert output.loss.item() == pytest.approx(0.437275, abs=1e-6)  # six digits are written above
    assert output.metrics["reward_gap_weight"].item() == pytest.approx(0.731059, abs=1e-6)
    assert output.chosen_reward.item() == pytest.approx(0.1, rel=1e-15)


def test_ties_count_half(up_and_down):
    loss = reward_gap_weight(simpo)(up_and_down[0], **scores(0.3, 0.3)).loss
    assert loss.item() == pytest.approx(0.5 * simpo(up_and_down[0]).loss.item(), rel=1e-15)


def test_it_shows_its_own_weight_beside_that_of_weighted(up_and_down):
    loss = weighted(reward_gap_weight(dpo))
    assert loss.__name__ == "weighted(reward_gap_weight(dpo))"
    with pytest.raises(RecipeError, match=r"reward_gap_weight: .* already contains it. Apply it once."):
        reward_gap_weight(loss)
