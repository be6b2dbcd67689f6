"""PMPO against sums worked by hand."""

import pytest
import torch

from prefopt.losses import pmpo
from prefopt.types import SideLogps

DESIRABLE = torch.tensor([True, False])


@pytest.fixture
def sides(answers):
    """Log-probs -3 (desirable) and -2, divergences 0.3 and 0.1; under the reference -4 and -1."""
    policy = answers([[-1.0, -2.0], [-2.0]], kl=[[0.1, 0.2], [0.1]])
    return SideLogps(policy, DESIRABLE), SideLogps(answers([[-2.0, -2.0], [-1.0]]), DESIRABLE)


def test_wanted_answers_pay_their_nll_and_unwanted_ones_their_log_prob(sides):
    """2 * 0.7 * 3 + 0.5 * 0.3 = 4.35; 2 * 0.3 * -2 + 0.5 * 0.1 = -1.15."""
    output = pmpo(*sides, alpha=0.7)
    assert output.loss.tolist() == pytest.approx([4.35, -1.15], rel=1e-14)
    assert output.chosen_reward.tolist() == pytest.approx([0.5, -0.5], rel=1e-15)
    assert output.metrics["kl"].tolist() == pytest.approx([0.3, 0.1], rel=1e-15)


def test_the_mean_over_as_many_of_each_is_the_papers_sum_of_means(sides):
    """-0.7 * -3 + 0.3 * -2 + 0.5 * (0.3 + 0.1) / 2 = 1.6."""
    assert pmpo(*sides, alpha=0.7).loss.mean().item() == pytest.approx(1.6, rel=1e-14)


def test_one_kind_alone_moves_by_the_divergence_at_the_ends_of_alpha(sides):
    """At alpha 1 an undesirable answer pays its divergence only; at 0 a desirable one does."""
    assert pmpo(*sides, alpha=1.0).loss[1].item() == pytest.approx(0.05, rel=1e-14)
    assert pmpo(*sides, alpha=0.0).loss[0].item() == pytest.approx(0.15, rel=1e-14)
