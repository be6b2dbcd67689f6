"""Masked token-level DPO against sums worked by hand, masks learned or from activations."""

import math

import pytest
import torch

from prefopt.losses import mapo, sparse_mask, sparse_mask_independent
from prefopt.types import PairLogps


@pytest.fixture
def reference(pairs):
    """Token log-ratios 1 and 0 for the chosen answer, -1 for the rejected one."""
    return pairs([[-2.0, -2.0]], [[-4.0]])


@pytest.fixture
def policy(answers):
    def build(mask, kl_mask=None):
        chosen, rejected = {"kl": [[0.1, 0.2]]}, {"kl": [[0.7]]}
        for name, values in (("reward_mask", mask), ("activation", mask), ("kl_mask", kl_mask or mask)):
            chosen[name], rejected[name] = [values[:2]], [values[2:]]
        return PairLogps(answers([[-1.0, -2.0]], **chosen), answers([[-5.0]], **rejected))

    return build


def cost(margin):
    return math.log1p(math.exp(-0.1 * margin))


def test_a_mask_counts_each_token_in_reward_and_divergence(policy, reference):
    """Sums u = 0.5 * 1 and 2 * -1, d = 0.5 * 0.1 and 2 * 0.7: margin 2.5 - (1.4 - 0.05) = 1.15."""
    output = sparse_mask(policy([0.5, 0.0, 2.0]), reference, l1=0.0)
    assert output.loss.item() == pytest.approx(cost(1.15), rel=1e-14)
    assert output.chosen_reward.item() == pytest.approx(0.1 * (0.5 + 0.05), rel=1e-14)
    assert output.rejected_reward.item() == pytest.approx(0.1 * (-2.0 + 1.4), rel=1e-14)


def test_l1_pays_for_a_mask_that_reward_and_divergence_share_once(policy, reference):
    """The mask adds up to 2.5: the authors add 0.01 / 2 * 2.5 for u and the same for d, 0.025 in all."""
    free = sparse_mask(policy([0.5, 0.0, 2.0]), reference, l1=0.0).loss
    paid = sparse_mask(policy([0.5, 0.0, 2.0]), reference, l1=0.01).loss
    assert (paid - free).item() == pytest.approx(0.025, rel=1e-13)


def test_masks_cost_by_default_what_the_authors_set_on_hh_rlhf(policy, reference):
    """0.001 * 2.5 for one mask; nothing for two, whose recipes set no l1."""
    drawn = policy([0.5, 0.0, 2.0], [0.0, 1.0, 0.0])
    assert sparse_mask(drawn, reference).loss.item() == pytest.approx(cost(1.15) + 0.0025, rel=1e-13)
    assert sparse_mask_independent(drawn, reference).loss.item() == pytest.approx(cost(2.7), rel=1e-14)


def test_metrics_tell_how_sparse_the_mask_is(policy, reference):
    """Three tokens: mean (0.5 + 0 + 2) / 3, one of three masked out."""
    metrics = sparse_mask(policy([0.5, 0.0, 2.0]), reference).metrics
    assert metrics["mask"].item() == pytest.approx(2.5 / 3, rel=1e-14)
    assert metrics["masked_out"].item() == pytest.approx(1 / 3, rel=1e-14)


def test_independent_masks_split_reward_and_divergence(policy, reference):
    """Sums u as with the first mask, 2.5; d = 1 * 0.2 and 0: margin 2.5 - (0 - 0.2) = 2.7; l1 pays 2.5 + 1."""
    split = policy([0.5, 0.0, 2.0], [0.0, 1.0, 0.0])
    assert sparse_mask_independent(split, reference, l1=0.0).loss.item() == pytest.approx(
        cost(2.7), rel=1e-14
    )
    paid = sparse_mask_independent(split, reference, l1=0.01).loss.item()
    assert paid == pytest.approx(cost(2.7) + 0.035, rel=1e-13)


def test_mapo_weighs_by_activation(policy, reference):
    """The same sums as a mask of those weights, with nothing to pay for it."""
    weights = policy([0.5, 0.0, 1.0])
    assert mapo(weights, reference).loss.item() == pytest.approx(cost(1.5 - (0.7 - 0.05)), rel=1e-14)


def test_a_mask_learns_from_the_margin(policy, reference):
    """More mask on the chosen token widens u by 1 and d by 0.1: the slope is -0.1 sigmoid(-0.115) * 1.1."""
    drawn = policy([0.5, 0.0, 2.0])
    mask = drawn.chosen.stats["reward_mask"].clone().requires_grad_()
    moved = PairLogps(drawn.chosen.with_stats({"reward_mask": mask}), drawn.rejected)
    (grad,) = torch.autograd.grad(sparse_mask(moved, reference, l1=0.0).loss.sum(), mask)
    slope = 0.1 / (1 + math.exp(0.115))
    assert grad.tolist() == pytest.approx([-1.1 * slope, -0.2 * slope], rel=1e-13)
