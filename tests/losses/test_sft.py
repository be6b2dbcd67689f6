"""Maximum likelihood against sums worked by hand."""

import pytest
import torch

from prefopt.losses import sft


@pytest.fixture
def policy(answers):
    return answers([[-1.0, -3.0], [-2.5]])


def test_sequence_averages_over_each_answers_own_tokens(policy):
    """4 / 2 = 2 and 2.5 / 1 = 2.5."""
    output = sft(policy)
    assert output.loss.tolist() == [2.0, 2.5]
    assert output.chosen_reward is None
    assert output.rejected_reward is None


def test_batch_token_mean_over_answers_is_the_mean_over_tokens(policy):
    """Mean length 1.5: 4 / 1.5 = 2.667 and 2.5 / 1.5 = 1.667; their mean is 6.5 / 3 tokens = 2.1667."""
    loss = sft(policy, nll="batch_token", mean_chosen_length=torch.tensor(1.5, dtype=torch.float64)).loss
    assert loss.tolist() == pytest.approx([4.0 / 1.5, 2.5 / 1.5], rel=1e-15)
    assert loss.mean().item() == pytest.approx(6.5 / 3.0, rel=1e-15)


def test_batch_token_without_a_length_says_what_to_give(policy):
    with pytest.raises(ValueError, match=r"nll='batch_token': mean_chosen_length is missing. Give the mean"):
        sft(policy, nll="batch_token")
