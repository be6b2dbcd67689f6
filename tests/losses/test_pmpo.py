"""PMPO against sums worked by hand: log-probs -3, -5 and -4, divergences 0.3, 0.7 and 0.2."""

import pytest
import torch

from prefopt.losses import pmpo, token_weighted
from prefopt.types import LabelledLogps


@pytest.fixture
def sides(answers):
    def build(*is_desirable, weight=1.0):
        tokens, kl = [[-1.0, -2.0], [-5.0], [-4.0]], [[0.1, 0.2], [0.7], [0.2]]
        ones = [[weight] * len(row) for row in tokens]
        return LabelledLogps(answers(tokens, kl=kl, weight=ones), torch.tensor(is_desirable))

    return build


@pytest.fixture
def reference(answers):
    return LabelledLogps(answers([[-2.0, -2.0], [-4.0], [-4.0]]), torch.tensor([True, False, True]))


def share(value):
    return torch.tensor(value, dtype=torch.float64)


def test_each_kind_is_averaged_by_itself(sides, reference):
    """Mean log-prob -3.5 of the two good, -5 of the bad one; -0.4 * -3.5 + 0.6 * -5 + 2 * 1.2 / 3 = -0.8."""
    policy = sides(True, False, True)
    loss = pmpo(policy, reference, desirable_share=share(2 / 3), alpha=0.4, beta=2.0).loss
    assert loss.tolist() == pytest.approx([1.8 + 0.6, -9.0 + 1.4, 2.4 + 0.4], rel=1e-14)
    assert loss.mean().item() == pytest.approx(-0.8, rel=1e-13)


def test_one_kind_alone_is_enough(sides, reference):
    """All good: the mean log-prob -4 and half of the mean divergence 0.4; all bad likewise, the other way."""
    good = pmpo(sides(True, True, True), reference, desirable_share=share(1.0), alpha=1.0)
    assert good.loss.mean().item() == pytest.approx(4.0 + 0.2, rel=1e-14)
    bad = pmpo(sides(False, False, False), reference, desirable_share=share(0.0), alpha=0.0)
    assert bad.loss.mean().item() == pytest.approx(-4.0 + 0.2, rel=1e-14)


def test_rewards_are_log_ratios(sides, reference):
    """Half of -3 - -4, -5 - -4 and -4 - -4; the divergence is a metric."""
    output = pmpo(sides(True, False, True), reference, desirable_share=share(2 / 3))
    assert output.chosen_reward.tolist() == [0.5, -0.5, 0.0]
    assert output.metrics["kl"].tolist() == pytest.approx([0.3, 0.7, 0.2], rel=1e-14)


def test_token_weights_reach_log_probs_and_divergence(sides, reference):
    """A weight of 0.5 on every token halves all of the loss."""
    labels = (True, False, True)
    whole = pmpo(sides(*labels), reference, desirable_share=share(2 / 3)).loss
    half = token_weighted(pmpo)(sides(*labels, weight=0.5), reference, desirable_share=share(2 / 3)).loss
    torch.testing.assert_close(half, 0.5 * whole, rtol=1e-14, atol=0.0)
