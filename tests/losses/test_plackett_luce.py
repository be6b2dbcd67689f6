"""Listwise DPO against sums worked by hand."""

import pytest
import torch

from prefopt.losses import plackett_luce


@pytest.fixture
def group(lists):
    """Log-ratios 1, 0 and -1."""
    return lists([[-1.0], [-2.0], [-2.0, -1.0]]), lists([[-2.0], [-2.0], [-1.0, -1.0]])


def scores(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_each_answer_is_drawn_from_those_behind_it(group):
    """Scores 3, 1, 2 rank the ratios 1, -1, 0.

    log(1 + e^-2 + e^-1) + log(1 + e^1) = 0.407606 + 1.313262 = 1.720868
    """
    output = plackett_luce(*group, answer_score=scores(3, 1, 2), beta=1.0)
    assert output.loss.tolist() == pytest.approx([1.720868], abs=1e-6)  # six digits are written above
    assert output.chosen_reward.tolist() == pytest.approx([1.0], rel=1e-15)
    assert output.rejected_reward.tolist() == pytest.approx([-0.5], rel=1e-15)
    assert output.metrics["ranking_accuracy"].tolist() == pytest.approx([2 / 3], rel=1e-15)


def test_only_the_order_of_scores_counts(group):
    near = plackett_luce(*group, answer_score=scores(0.3, 0.1, 0.2)).loss
    assert torch.equal(near, plackett_luce(*group, answer_score=scores(300, -1, 2)).loss)


def test_at_equal_ratios_every_ranking_is_as_likely(lists):
    """Log-prob of one in 3! orders: log 6 = 1.791759."""
    answers = lists([[-1.0], [-2.0], [-3.0]])
    loss = plackett_luce(answers, answers, answer_score=scores(1, 3, 2)).loss
    assert loss.tolist() == pytest.approx([1.791759], abs=1e-6)  # six digits are written above


def test_the_first_of_equal_scores_counts_as_better(group):
    tied = plackett_luce(*group, answer_score=scores(1, 1, 0)).loss
    assert torch.equal(tied, plackett_luce(*group, answer_score=scores(2, 1, 0)).loss)
