"""Degrees of preference against sums worked by hand."""

import math

import pytest
import torch

from prefopt.losses import dpo, spo_selfsup


def degrees(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("degree", "cost"), [(1.0, 1.898865), (2.0, 1.465084), (3.0, 0.693147), (7.0, 0.693147)]
)
def test_cost_of_each_degree(up_and_down, degree, cost):
    """At m = 2, thresholds 0, 1, 2 below it: P = s(2) - s(1) = 0.149738, s(1) - s(0) = 0.231059, s(0) = 0.5.

    -log: 1.898865, 1.465084, 0.693147; a degree beyond the last counts as the last.
    """
    output = spo_selfsup(*up_and_down, pair_margin=degrees(degree), beta=1.0, gamma=0.5)
    assert output.metrics["degree_cost"].item() == pytest.approx(
        cost, abs=1e-6
    )  # six digits are written above
    expected = dpo(*up_and_down, beta=1.0).loss.item() + 0.5 * cost
    assert output.loss.item() == pytest.approx(expected, abs=1e-6)


def test_the_degrees_and_the_rejected_answer_winning_share_all_probability(up_and_down):
    """0.149738 + 0.231059 + 0.5 + s(-2) = 1."""
    costs = [
        spo_selfsup(*up_and_down, pair_margin=degrees(d), beta=1.0).metrics["degree_cost"].item()
        for d in (1, 2, 3)
    ]
    assert sum(math.exp(-cost) for cost in costs) + 1.0 / (1.0 + math.exp(2.0)) == pytest.approx(
        1.0, rel=1e-14
    )


def test_a_pair_of_unknown_degree_pays_dpo(up_and_down):
    output = spo_selfsup(*up_and_down, pair_margin=degrees(0.0), gamma=5.0)
    assert output.loss.item() == dpo(*up_and_down).loss.item()
    assert output.metrics["degree_cost"].item() == 0.0


def test_with_one_class_the_degree_is_dpos_own_question(up_and_down):
    """P(1 or more) = sigmoid(m): the loss is (1 + gamma) times DPO's."""
    loss = spo_selfsup(*up_and_down, pair_margin=degrees(1.0), gamma=0.7, max_degree=1.0).loss
    assert loss.item() == pytest.approx(1.7 * dpo(*up_and_down).loss.item(), rel=1e-15)


@pytest.mark.parametrize(("degree", "pulls_up"), [(1.0, False), (3.0, True)])
def test_a_wide_margin_is_pulled_back_to_a_small_degree(pairs, degree, pulls_up):
    """At m = 5 degree 1 (from 0 to 1) wants less, the last degree more."""
    policy = pairs([[5.0]], [[0.0]])
    policy.chosen.tokens.requires_grad_()
    zero = pairs([[0.0]], [[0.0]])
    spo_selfsup(policy, zero, pair_margin=degrees(degree), beta=1.0, gamma=1.0).loss.sum().backward()
    assert (policy.chosen.tokens.grad.item() < 0.0) == pulls_up


def test_spacing_scales_the_thresholds(up_and_down):
    """At m = 2, spacing 2: P(2) = s(0) - s(-2) = 0.5 - 0.119203 = 0.380797, cost 0.965489."""
    output = spo_selfsup(*up_and_down, pair_margin=degrees(2.0), beta=1.0, spacing=2.0)
    assert output.metrics["degree_cost"].item() == pytest.approx(
        0.965489, abs=1e-6
    )  # six digits are written above
