"""TDPO against sums worked by hand: log-ratios 1 and -1, divergences 0.3 and 0.7."""

import math

import pytest
import torch

from prefopt.errors import RecipeError
from prefopt.losses import tdpo
from prefopt.types import PairLogps


@pytest.fixture
def policy(answers):
    """K = 0.1 + 0.2 = 0.3 for the chosen answer, 0.7 for the rejected one."""
    return PairLogps(chosen=answers([[-1.0, -2.0]], kl=[[0.1, 0.2]]), rejected=answers([[-5.0]], kl=[[0.7]]))


@pytest.fixture
def reference(pairs):
    return pairs([[-2.0, -2.0]], [[-4.0]])


def cost(margin):
    return math.log1p(math.exp(-margin))


def test_tdpo1_takes_the_whole_difference_off_the_margin(policy, reference):
    """D - (K_l - K_w) = 2 - 0.4 = 1.6; log(1 + e^-0.16) = 0.616344."""
    output = tdpo(policy, reference, variant="tdpo1")
    assert output.loss.item() == pytest.approx(cost(0.16), rel=1e-15)
    assert output.loss.item() == pytest.approx(0.616344, abs=1e-6)  # six digits are written above


def test_tdpo2_takes_alpha_of_it(policy, reference):
    """2 - 0.5 * 0.4 = 1.8; log(1 + e^-0.18) = 0.607192; at alpha 2, 2 - 0.8 = 1.2."""
    assert tdpo(policy, reference).loss.item() == pytest.approx(0.607192, abs=1e-6)
    assert tdpo(policy, reference, alpha=2.0).loss.item() == pytest.approx(cost(0.12), rel=1e-15)


def test_rewards_include_the_divergence(policy, reference):
    """0.1 * (1 + 0.3) and 0.1 * (-1 + 0.7); the divergences themselves are metrics."""
    output = tdpo(policy, reference)
    assert output.chosen_reward.item() == pytest.approx(0.13, rel=1e-14)
    assert output.rejected_reward.item() == pytest.approx(-0.03, rel=1e-14)
    assert output.metrics["chosen_kl"].item() == pytest.approx(0.3, rel=1e-14)
    assert output.metrics["rejected_kl"].item() == 0.7


def test_only_tdpo1_pulls_at_the_chosen_answers_divergence(policy, reference):
    """Slope of -log sigmoid(0.1 m) at m is -0.1 sigmoid(-0.1 m): tdpo1 +-that, tdpo2 0 and alpha times that."""
    for variant, margin, pulls in (("tdpo1", 1.6, (-1.0, 1.0)), ("tdpo2", 1.8, (0.0, 0.5))):
        kls = [side.stats["kl"].clone().requires_grad_() for side in (policy.chosen, policy.rejected)]
        moved = PairLogps(
            policy.chosen.with_stats({"kl": kls[0]}), policy.rejected.with_stats({"kl": kls[1]})
        )
        loss = tdpo(moved, reference, variant=variant).loss.sum()
        grads = torch.autograd.grad(loss, kls, materialize_grads=True)
        slope = 0.1 / (1 + math.exp(0.1 * margin))
        assert grads[0].tolist() == pytest.approx([pulls[0] * slope] * 2, rel=1e-14)
        assert grads[1].tolist() == pytest.approx([pulls[1] * slope], rel=1e-14)


def test_tdpo1_has_no_alpha(policy, reference):
    with pytest.raises(RecipeError, match=r"^tdpo\.alpha: 0\.3 has no effect with variant: tdpo1\."):
        tdpo(policy, reference, alpha=0.3, variant="tdpo1")
