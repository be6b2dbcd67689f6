"""EXO on lists against sums worked by hand."""

import math

import pytest
import torch

from prefopt.losses import exo_k


def scores(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_reward_is_the_reverse_kl_to_the_softmax_of_scores(lists):
    """Ratios 1, -1: log p = -0.126928, -2.126928; scores 1, 0: log q = -0.313262, -1.313262.

    0.880797 * 0.186334 - 0.119203 * 0.813666 = 0.067131
    """
    group = lists([[-1.0], [-2.0]]), lists([[-2.0], [-1.0]])
    output = exo_k(*group, answer_score=scores(1, 0), beta=1.0, beta_r=1.0)
    assert output.loss.tolist() == pytest.approx([0.067131], abs=2e-6)  # from six digits


def test_nothing_is_paid_where_the_policy_chooses_as_the_scores_do(lists):
    """Beta * h = score / beta_r for all three."""
    group = lists([[-1.0], [-2.0], [-2.5]]), lists([[-3.0], [-3.0], [-3.0]])
    assert exo_k(*group, answer_score=scores(2, 1, 0.5), beta=0.1, beta_r=10.0).loss.item() == pytest.approx(
        0.0, abs=1e-15
    )


def test_preference_shares_the_smoothing_among_the_others(lists):
    """Equal ratios: p = 1/3 each, so -log 3 - (log 0.8 + 2 log 0.1) / 3 = 0.510826 at label_smoothing 0.2."""
    answers = lists([[-1.0], [-2.0], [-3.0]])
    output = exo_k(answers, answers, answer_score=scores(1, 9, 2), target="preference", label_smoothing=0.2)
    wanted = -math.log(3.0) - (math.log(0.8) + 2 * math.log(0.1)) / 3
    assert wanted == pytest.approx(0.510826, abs=1e-6)  # six digits are written above
    assert output.loss.tolist() == pytest.approx([wanted], rel=1e-14)


def test_preference_reads_no_more_than_which_is_best(lists):
    group = lists([[-1.0], [-2.0], [-4.0]]), lists([[-2.0], [-2.0], [-2.0]])
    near, far = (
        exo_k(*group, answer_score=s, target="preference").loss for s in (scores(3, 1, 2), scores(90, 2, 1))
    )
    assert torch.equal(near, far)
