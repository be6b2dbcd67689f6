"""Weights for single tokens: values by hand, what they leave alone, and what they refuse."""

import math

import pytest
import torch

from prefopt.errors import RecipeError
from prefopt.losses import (
    contract_of,
    dpo,
    ipo,
    ld_dpo,
    length_desensitized,
    sft,
    sgdpo,
    simpo,
    sparse_mask,
    suffix_from_divergence,
    tdpo,
    token_weighted,
    with_nll,
)
from prefopt.types import LabelledLogps, LossOutput, PairLogps


@pytest.fixture
def policy(answers):
    return PairLogps(
        answers([[-1.0, -2.0]], weight=[[2.0, 0.5]], activation=[[0.0, 1.0]], kl=[[0.1, 0.2]]),
        answers([[-5.0]], weight=[[0.5]], activation=[[1.0]], kl=[[0.7]]),
    )


@pytest.fixture
def reference(pairs):
    return pairs([[-2.0, -2.0]], [[-4.0]])


def cost(margin):
    return math.log1p(math.exp(-0.1 * margin))


def test_each_token_counts_at_its_weight_on_both_sides(policy, reference):
    """Log-ratios 2 * 1 + 0.5 * 0 = 2 and 0.5 * -1 = -0.5: margin 2.5."""
    output = token_weighted(dpo)(policy, reference)
    assert output.loss.item() == pytest.approx(cost(2.5), rel=1e-14)
    assert output.chosen_reward.item() == pytest.approx(0.2, rel=1e-14)


def test_activations_are_another_source(policy, reference):
    """Log-ratios 0 * 1 + 1 * 0 = 0 and -1: margin 1."""
    loss = token_weighted(dpo, source="activations")
    assert contract_of(loss).policy_stats == ("activation",)
    assert loss(policy, reference).loss.item() == pytest.approx(cost(1.0), rel=1e-14)


def test_the_divergence_is_weighed_too(policy, reference):
    """K = 2 * 0.1 + 0.5 * 0.2 = 0.3 and 0.35: margin 2.5 - 0.5 * 0.05."""
    loss = token_weighted(tdpo)(policy, reference)
    assert loss.loss.item() == pytest.approx(cost(2.475), rel=1e-14)
    assert loss.metrics["rejected_kl"].item() == pytest.approx(0.35, rel=1e-14)


def test_lengths_and_likelihood_terms_stay(policy, reference):
    """Loss ipo still divides by 2 and 1 tokens; the likelihood term is (1 + 2) / 2 whatever the weights."""
    assert token_weighted(ipo)(policy, reference, beta=0.5).loss.item() == pytest.approx((1.5 - 1) ** 2)
    assert token_weighted(with_nll(dpo))(policy, reference).metrics["nll"].item() == 1.5


def test_labelled_answers_are_weighed(answers):
    """A loss over labelled answers sees -1 * 2 - 2 * 0.5 = -3 and -5 * 0.5 = -2.5."""

    def lone(policy: LabelledLogps) -> LossOutput:
        return LossOutput(loss=-policy.answers.total)

    sides = LabelledLogps(
        answers([[-1.0, -2.0], [-5.0]], weight=[[2.0, 0.5], [0.5]]), torch.tensor([True, False])
    )
    assert token_weighted(lone)(sides).loss.tolist() == [3.0, 2.5]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: token_weighted(sft),
            "needs a loss over pairs or labelled answers or lists of answers, but sft learns from single answers",
        ),
        (
            lambda: token_weighted(simpo, source="activations"),
            "simpo has no reference to take activations from",
        ),
        (lambda: token_weighted(sgdpo), "sgdpo reads tokens that it would not reach"),
        (lambda: token_weighted(sparse_mask), "sparse_mask reads tokens"),
        (lambda: token_weighted(ld_dpo), "adds up tokens anew by length_desensitized, and one would undo"),
        (lambda: length_desensitized(token_weighted(dpo)), "adds up tokens anew by token_weighted"),
        (lambda: suffix_from_divergence(token_weighted(dpo)), "adds up tokens anew by token_weighted"),
        (lambda: token_weighted(token_weighted(dpo)), "already contains it"),
    ],
)
def test_refuses_what_it_would_not_reach_or_undo(build, message):
    with pytest.raises(RecipeError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)
