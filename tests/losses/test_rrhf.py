"""RRHF against sums worked by hand."""

import pytest
import torch

from prefopt.losses import rrhf

SCORES = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)


@pytest.fixture
def group(lists):
    """Means -2, -1 and -0.5; sums -4, -1 and -1."""
    return lists([[-1.0, -3.0], [-1.0], [-0.5, -0.5]])


def test_wrongly_ranked_pairs_pay_their_gap_and_the_best_its_nll(group):
    """All three pairs are wrong: 1 + 1.5 + 0.5 = 3; NLL of the best 2."""
    output = rrhf(group, answer_score=SCORES)
    assert output.loss.tolist() == [5.0]
    assert output.metrics["nll"].tolist() == [2.0]
    assert output.metrics["ranking_accuracy"].tolist() == [0.0]
    assert rrhf(group, answer_score=SCORES, alpha=0.25).loss.tolist() == [3.5]


def test_rightly_ranked_pairs_pay_nothing(group):
    assert rrhf(group, answer_score=-SCORES, alpha=0.0).loss.tolist() == [0.0]


def test_without_length_the_sums_are_compared(group):
    """-4 against -1 twice, -1 against -1: 3 + 3 + 0."""
    assert rrhf(group, answer_score=SCORES, alpha=0.0, lam=0.0).loss.tolist() == [6.0]


def test_equal_scores_are_no_pair(lists):
    group = lists([[-2.0], [-1.0]])
    assert rrhf(group, answer_score=torch.ones(2, dtype=torch.float64), alpha=0.0).loss.tolist() == [0.0]
