"""PRO against sums worked by hand."""

import pytest
import torch

from prefopt.losses import pro_rank

SCORES = torch.tensor([0.5, 1.0, 0.0], dtype=torch.float64)


@pytest.fixture
def group(lists):
    """Means -2, -1 and -3; the second has the best score and the sum -2."""
    return lists([[-2.0], [-0.5, -1.5], [-3.0]])


def test_gaps_of_scores_are_temperatures(group):
    """Best first: s = -1, -2, -3, r = 1, 0.5, 0.

    k = 1: T = 1, 0.5, 1: log(e^-1 + e^-1 + e^-3) + 1 = log(2 + e^-2) = 0.758624
    k = 2: T = 0.5, 0.5: log(e^-1 + e^-1.5) + 1 = log(1 + e^-0.5) = 0.474077
    """
    output = pro_rank(group, answer_score=SCORES, alpha=0.0)
    assert output.loss.tolist() == pytest.approx([1.232701], abs=1e-6)  # six digits are written above
    assert output.chosen_reward.tolist() == [-1.0]
    assert output.rejected_reward.tolist() == [-2.5]


@pytest.mark.parametrize(("norm", "added"), [("sum", 0.4), ("mean", 0.2)])
def test_the_best_answers_likelihood_counts_by_the_square_of_the_list(group, norm, added):
    """0.05 * (3 - 1)^2 * 2 = 0.4 for the sum of the best answer's log-probs, half of it for the mean."""
    output = pro_rank(group, answer_score=SCORES, norm=norm)
    assert output.loss.item() == pytest.approx(1.232701 + added, abs=1e-6)  # six digits are written above
    assert output.metrics["nll"].tolist() == pytest.approx([5 * added], rel=1e-15)


def test_equal_scores_pull_at_nothing(lists):
    """All temperatures are 0: log 3 + log 2 whatever the policy says."""
    answers = lists([[-2.0], [-0.5], [-3.0]])
    answers.answers.tokens.requires_grad_()
    loss = pro_rank(answers, answer_score=torch.ones(3, dtype=torch.float64), alpha=0.0).loss
    assert loss.item() == pytest.approx(1.791759, abs=1e-6)  # log 6
    (gradient,) = torch.autograd.grad(loss.sum(), answers.answers.tokens)
    assert gradient.tolist() == [0.0, 0.0, 0.0]
