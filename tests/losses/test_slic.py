"""SLiC against sums worked by hand."""

import pytest
import torch

from prefopt.errors import RecipeError
from prefopt.losses import slic, with_nll


@pytest.fixture
def policy(pairs):
    """Log-probs -3 over two tokens against -3.5 over one."""
    return pairs([[-1.0, -2.0]], [[-3.5]])


def test_lead_short_of_delta_plus_likelihood_per_token(policy):
    """max(0, 1 - -3 + -3.5) = 0.5, and 0.1 * 3 / 2 = 0.15."""
    output = slic(policy)
    assert output.loss.tolist() == pytest.approx([0.65], rel=1e-15)
    assert output.metrics["nll"].tolist() == [1.5]
    assert output.chosen_reward.tolist() == [-3.0]
    assert output.rejected_reward.tolist() == [-3.5]


def test_beyond_delta_only_the_likelihood_is_left(policy):
    """1/4 - 0.5 < 0, so lam * 1.5 = 0.45 at lam 0.3."""
    assert slic(policy, delta=0.25, lam=0.3).loss.item() == pytest.approx(0.45, rel=1e-15)


def test_batch_token_divides_by_the_mean_length_of_the_step(policy):
    """0.5 + 0.1 * 3 / 4 = 0.575."""
    length = torch.tensor(4.0, dtype=torch.float64)
    loss = slic(policy, nll="batch_token", mean_chosen_length=length).loss
    assert loss.item() == pytest.approx(0.575, rel=1e-15)
    with pytest.raises(ValueError, match="mean_chosen_length is missing"):
        slic(policy, nll="batch_token")


def test_likelihood_is_not_added_twice():
    with pytest.raises(RecipeError, match="with_nll: slic already contains it"):
        with_nll(slic)
