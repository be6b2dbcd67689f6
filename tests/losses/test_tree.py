"""Tree PO against sums worked by hand."""

import math

import pytest
import torch

from prefopt.losses import dpo, tree


def scores(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_a_pair_pays_its_dpo_loss_times_the_gain_of_swapping_it(lists):
    """Ratios 0 and 1, values 1 and 0: |2 - 1| * |1 / log 3 - 1 / log 2| = 0.532456.

    0.532456 * -log sigmoid(-1) = 0.532456 * 1.313262 = 0.699254
    """
    group = lists([[-1.0], [-1.0]]), lists([[-1.0], [-2.0]])
    for ranks in ("policy", "score"):  # a swap of two is the same either way round
        output = tree(*group, answer_score=scores(1, 0), beta=1.0, ranks=ranks)
        assert output.loss.tolist() == pytest.approx([0.699254], abs=1e-6)  # six digits are written above


def test_ranks_are_those_of_the_policy_or_of_the_scores(lists):
    """Ratios 0, 1, 3 with values 1, 1, 0: the pairs are (0, 2) and (1, 2), gain gap 1.

    By the policy's ranks 3, 2, 1: w = 1/log 2 - 1/log 4, 1/log 2 - 1/log 3. By the scores' 1, 2, 3: w = 1/log 2 -
    1/log 4, 1/log 3 - 1/log 4.
    """
    group = lists([[-1.0], [-1.0], [-1.0]]), lists([[-1.0], [-2.0], [-4.0]])
    costs = math.log1p(math.exp(3.0)), math.log1p(math.exp(2.0))
    one, two, three = (1.0 / math.log(1 + rank) for rank in (1, 2, 3))
    for ranks, weights in (("policy", (one - three, one - two)), ("score", (one - three, two - three))):
        wanted = sum(weight * cost for weight, cost in zip(weights, costs, strict=True))
        got = tree(*group, answer_score=scores(1, 1, 0), beta=1.0, ranks=ranks).loss.item()
        assert got == pytest.approx(wanted, rel=1e-14)


def test_rewards_that_differ_by_rounding_are_ranked_by_score(lists):
    """At the start all rewards are zero but for noise, which must not decide the weights."""
    reference, values = lists([[-1.0], [-1.0], [-1.0]]), scores(0, 2, 1)
    quiet = tree(reference, reference, answer_score=values).loss.item()
    noisy = tree(lists([[-1.001], [-0.999], [-0.99]]), reference, answer_score=values).loss.item()
    assert noisy == pytest.approx(quiet, rel=1e-2)  # the pairs' own losses move by as much
    assert quiet == pytest.approx(tree(reference, reference, answer_score=values, ranks="score").loss.item())


def test_weights_are_held_constant(lists, pairs):
    """The gradient is that of DPO times the weight 0.532456."""
    policy, reference = lists([[-1.0], [-1.0]]), lists([[-1.0], [-2.0]])
    paired = pairs([[-1.0]], [[-1.0]])
    for tokens in (policy.answers.tokens, paired.chosen.tokens):
        tokens.requires_grad_()
    tree(policy, reference, answer_score=scores(1, 0), beta=1.0).loss.sum().backward()
    dpo(paired, pairs([[-1.0]], [[-2.0]]), beta=1.0).loss.sum().backward()
    weight = 1 / math.log(2) - 1 / math.log(3)
    assert policy.answers.tokens.grad[0].item() == pytest.approx(
        weight * paired.chosen.tokens.grad.item(), rel=1e-14
    )


def test_a_worse_ranking_pays_more(lists):
    """The authors' code pays less for it."""
    reference = lists([[-3.0], [-3.0], [-3.0]])
    right, wrong = lists([[-1.0], [-2.0], [-4.0]]), lists([[-4.0], [-2.0], [-1.0]])
    paid = [tree(policy, reference, answer_score=scores(2, 1, 0)).loss.item() for policy in (right, wrong)]
    assert paid[0] < paid[1]


def test_values_in_the_thousands_stay_finite(lists):
    group = lists([[-1.0], [-1.0]]), lists([[-1.0], [-2.0]])
    assert torch.isfinite(tree(*group, answer_score=scores(5000, 1)).loss).all()
