"""MaPPO against sums worked by hand, as a loss and as a transform."""

import pytest
import torch

from prefopt.errors import RecipeError
from prefopt.losses import (
    cpo,
    dpo,
    ipo,
    length_desensitized,
    mappo,
    prior_scaled,
    sft,
    sgdpo,
    simpo,
    weighted,
    with_nll,
    wpo,
)


def scores(chosen, rejected):
    return {
        "chosen_score": torch.tensor([chosen], dtype=torch.float64),
        "rejected_score": torch.tensor([rejected], dtype=torch.float64),
    }


HALF = scores(0.9, 0.4)


def test_the_rejected_log_ratio_counts_by_the_gap(up_and_down):
    """Log-ratios +1 and -1, gap 0.5: 0.1 * (1 + 0.5) = 0.15; log(1 + e^-0.15) = 0.620957."""
    output = mappo(*up_and_down, beta=0.1, **HALF)
    assert output.loss.item() == pytest.approx(0.620957, abs=1e-6)  # six digits are written above
    assert output.chosen_reward.item() == pytest.approx(0.1, rel=1e-14)
    assert output.rejected_reward.item() == pytest.approx(-0.05, rel=1e-14)
    assert output.metrics["prior_gap"].tolist() == pytest.approx([0.5], rel=1e-15)


@pytest.mark.parametrize(("given", "gap"), [((7.0, 2.0), 1.0), ((0.2, 0.9), 0.0), ((0.5, 0.5), 0.0)])
def test_the_gap_is_clamped_to_one_and_zero(up_and_down, given, gap):
    """0.1 * (1 + gap): DPO at 1, the chosen answer alone at 0."""
    output = mappo(*up_and_down, beta=0.1, **scores(*given))
    assert output.metrics["prior_gap"].item() == gap
    expected = torch.nn.functional.softplus(torch.tensor(-0.1 * (1.0 + gap), dtype=torch.float64))
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-14)


def test_the_gradient_of_the_rejected_answer_is_scaled(up_and_down):
    """sigmoid(-0.15) = 0.462570: -0.1 and +0.1 * 0.5 times that."""
    policy, reference = up_and_down
    policy.chosen.tokens.requires_grad_()
    policy.rejected.tokens.requires_grad_()
    mappo(policy, reference, beta=0.1, **HALF).loss.sum().backward()
    assert policy.chosen.tokens.grad.tolist() == pytest.approx([-0.0462570] * 2, abs=1e-7)
    assert policy.rejected.tokens.grad.tolist() == pytest.approx([0.0231285], abs=1e-7)


def test_prior_scaled_reaches_means_and_squares(up_and_down):
    """IPO on means: h = 1 / 2 and 0.5 * -1, margin 1, target 5: 16. SimPO: -1.5 + 0.5 * 5 = 1: 2 * 1 - 1 = 1."""
    policy, reference = up_and_down
    assert prior_scaled(ipo)(policy, reference, beta=0.1, **HALF).loss.item() == pytest.approx(
        16.0, rel=1e-14
    )
    loss = prior_scaled(simpo)(policy, beta=2.0, gamma=1.0, **HALF).loss
    assert loss.item() == pytest.approx(0.313262, abs=1e-6)  # log(1 + e^-1)


def test_prior_scaled_leaves_the_chosen_answers_likelihood(up_and_down):
    """CPO: -ls(0.1 * (-3 + 0.5 * 5)) + 1.5, with -ls(-0.05) = 0.718460."""
    loss = prior_scaled(cpo)(up_and_down[0], **HALF).loss
    assert loss.item() == pytest.approx(2.218460, abs=1e-6)  # six digits are written above


def test_prior_scaled_and_the_tail_discount_act_in_either_order(pairs):
    policy, reference = pairs([[-1.0]], [[-5.0, -1.0, -2.0]]), pairs([[-2.0]], [[-4.0, -3.0, -1.5]])
    plain = prior_scaled(dpo)(policy, reference, **HALF).loss
    one = length_desensitized(prior_scaled(dpo), alpha=0.5)(policy, reference, **HALF).loss
    other = prior_scaled(length_desensitized(dpo, alpha=0.5))(policy, reference, **HALF).loss
    assert one.item() == pytest.approx(other.item(), rel=1e-15)
    assert one.item() != plain.item()


def test_prior_scaled_reaches_sampled_tokens(pairs):
    """One token per answer, sampled whole: both halves of SGDPO see the margin 0.1 * (1 + 0.5) = 0.15."""
    policy, reference = pairs([[-1.0]], [[-5.0]]), pairs([[-2.0]], [[-4.0]])
    loss = prior_scaled(sgdpo)(policy, reference, pair_seed=torch.tensor([1]), **HALF).loss
    assert loss.item() == pytest.approx(0.620957, abs=1e-6)  # six digits are written above


def test_prior_scaled_goes_inside_what_compares_with_statistics():
    assert weighted(prior_scaled(dpo)).__name__ == "weighted(prior_scaled(dpo))"
    for loss in (wpo, weighted(dpo), with_nll(weighted(dpo))):
        with pytest.raises(RecipeError, match=r"^prior_scaled: .* List prior_scaled before the transform"):
            prior_scaled(loss)


def test_prior_scaled_is_applied_once_and_to_pairs():
    for loss in (mappo, prior_scaled(ipo)):
        with pytest.raises(RecipeError, match=r"prior_scaled: .* already contains it. Apply it once."):
            prior_scaled(loss)
    with pytest.raises(RecipeError, match="needs a loss over pairs, but sft learns from single answers"):
        prior_scaled(sft)
