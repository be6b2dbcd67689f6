"""NCA and InfoNCA on lists against sums worked by hand."""

import pytest
import torch

from prefopt.losses import infonca_k, nca_k

SCORES = torch.tensor([1.0, 0.0], dtype=torch.float64)


@pytest.fixture
def group(lists):
    """Log-ratios 1 and -1."""
    return lists([[-1.0], [-2.0]]), lists([[-2.0], [-1.0]])


def test_infonca_is_the_cross_entropy_of_two_softmaxes(group):
    """Y = 0.731059, 0.268941; log softmax(1, -1) = -0.126928, -2.126928.

    0.731059 * 0.126928 + 0.268941 * 2.126928 = 0.664810
    """
    output = infonca_k(*group, answer_score=SCORES, beta=1.0, tau=1.0)
    assert output.loss.tolist() == pytest.approx([0.664810], abs=2e-6)  # from six digits
    assert output.chosen_reward.tolist() == [1.0]
    assert output.rejected_reward.tolist() == [-1.0]


def test_nca_sees_each_answer_by_itself(group):
    """-log sigmoid(1) = 0.313262, -log sigmoid(-1) = 1.313262.

    0.731059 * 0.313262 + 0.268941 * 1.313262 + (1.313262 + 0.313262) / 2 = 1.395465
    """
    output = nca_k(*group, answer_score=SCORES, beta=1.0, tau=1.0)
    assert output.loss.tolist() == pytest.approx([1.395465], abs=2e-6)  # from six digits


def test_lowering_both_answers_costs_nca_but_not_infonca(lists):
    reference = lists([[-1.0], [-1.0]])
    level, low = lists([[-1.0], [-1.0]]), lists([[-4.0], [-4.0]])
    for loss, is_same in ((infonca_k, True), (nca_k, False)):
        paid = [loss(policy, reference, answer_score=SCORES, beta=1.0).loss.item() for policy in (level, low)]
        assert (paid[0] == pytest.approx(paid[1], rel=1e-15)) == is_same
        assert is_same or paid[1] > paid[0]


def test_a_higher_temperature_wants_answers_more_alike(group):
    """At tau 1000 the labels are 0.50025 and 0.49975, so InfoNCA nears the mean of both costs, 1.126928."""
    loss = infonca_k(*group, answer_score=SCORES, beta=1.0, tau=1000.0).loss.item()
    assert loss == pytest.approx(1.126928, abs=1e-3)  # the labels differ by 5e-4
