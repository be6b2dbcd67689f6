"""SGDPO against sums worked by hand, and how it samples."""

import numpy as np
import pytest
import torch

from prefopt.errors import RecipeError
from prefopt.losses import contract_of, dpo, f_div, length_desensitized, sgdpo, with_nll
from prefopt.losses._terms import scramble
from prefopt.losses.sgdpo import _pilot
from prefopt.types import PairLogps, SeqLogps


def seeds(*values):
    return torch.tensor(values, dtype=torch.int64)


def test_each_answer_against_a_part_of_the_other(pairs):
    """Log-ratios 0.5, 0.5 and -1; the shorter answer has one token, so g = 0.5 and -1.

    (log(1 + e^-0.1(1 + 1)) + log(1 + e^-0.1(0.5 + 1))) / 2 = (0.598139 + 0.620957) / 2 = 0.609548.
    """
    policy, reference = pairs([[-1.5, -1.5]], [[-5.0]]), pairs([[-2.0, -2.0]], [[-4.0]])
    output = sgdpo(policy, reference, pair_seed=seeds(3), beta=0.1)
    assert output.loss.item() == pytest.approx(0.609548, abs=1e-6)  # six digits are written above
    assert output.chosen_reward.item() == pytest.approx(0.1, rel=1e-15)
    assert output.rejected_reward.item() == pytest.approx(-0.1, rel=1e-15)


@pytest.fixture
def alike(pairs):
    """Two tokens on both sides: D = 2."""
    return pairs([[-1.0, -2.0]], [[-5.0, -1.0]]), pairs([[-2.0, -2.0]], [[-4.0, -1.0]])


def whole(policy, reference, loss, **given):
    tokens = policy.chosen.tokens.requires_grad_()
    paid = loss(policy, reference, **given).loss
    return paid.item(), torch.autograd.grad(paid.sum(), tokens)[0]


def test_whole_answers_of_equal_length_give_the_value_of_dpo_and_half_its_gradient(alike):
    value, gradient = whole(*alike, sgdpo, pair_seed=seeds(1), chosen_share=1.0, rejected_share=1.0)
    expected, full = whole(*alike, dpo)
    assert value == pytest.approx(expected, rel=1e-15)
    torch.testing.assert_close(gradient, 0.5 * full, rtol=1e-14, atol=0.0)  # a rounding each


def test_sampled_tokens_carry_no_gradient_of_their_own(pairs):
    """Every chosen token gets -0.05 * sigmoid(-0.1 (h_w - g_l)), sampled or not."""
    policy, reference = pairs([[-1.0, -2.0, -0.5]], [[-5.0]]), pairs([[-2.0, -2.0, -0.5]], [[-4.0]])
    _, gradient = whole(policy, reference, sgdpo, pair_seed=seeds(1))
    assert gradient.tolist() == pytest.approx([-0.05 * 0.4501660] * 3, rel=1e-6)


def sampled(seed: int, length: int = 6, shorter: int = 6, share: float = 0.5, side: int = 1) -> set[int]:
    """Read from the sum of powers of two which tokens were drawn."""
    tokens = 2.0 ** torch.arange(length, dtype=torch.float64)
    policy, zero = (
        SeqLogps(tokens=values, lengths=(length,)) for values in (tokens, torch.zeros_like(tokens))
    )
    total = int(_pilot(policy, zero, share * np.array([shorter]), seeds(seed), side).item())
    return {i for i in range(length) if total >> i & 1}


@pytest.mark.parametrize(
    ("length", "shorter", "share", "count"), [(6, 6, 0.5, 3), (6, 4, 0.6, 2), (6, 1, 0.6, 1), (6, 6, 1.0, 6)]
)
def test_the_number_of_tokens_is_a_share_of_the_shorter_answer(length, shorter, share, count):
    """max(1, floor(share * shorter)): 3, floor(2.4) = 2, max(1, 0) = 1, 6."""
    for seed in range(20):
        assert len(sampled(seed, length, shorter, share)) == count


def test_a_seed_names_the_draw_and_every_token_has_its_turn():
    """600 draws of 3 of 6: each token 300 times, standard deviation sqrt(600 / 4) = 12; five of them."""
    draws = [sampled(seed) for seed in range(600)]
    assert draws == [sampled(seed) for seed in range(600)]
    counts = [sum(token in draw for draw in draws) for token in range(6)]
    assert all(abs(count - 300) < 61 for count in counts)
    assert draws != [sampled(seed, side=2) for seed in range(600)]


@pytest.mark.parametrize("seed", [-5, 2**63 - 1, -(2**63)])
def test_every_seed_serves(seed):
    assert len(sampled(seed)) == 3


def test_the_draw_is_that_of_splitmix64():
    """Its published sequence from 0 scrambles multiples of 0x9E3779B97F4A7C15: 0xE220A8397B1DCDAF comes first."""
    first = scramble(seeds(0x9E3779B97F4A7C15 - 2**64))
    assert first.item() % 2**64 == 0xE220A8397B1DCDAF


def test_a_pair_pays_the_same_in_any_company(pairs):
    """Alone or as the second of two, as long as its seed goes with it."""
    policy = pairs([[-1.0], [-1.0, -2.0, -3.0]], [[-2.0, -1.0], [-5.0, -1.5, -0.2, -2.0]])
    reference = pairs([[-2.0], [-2.0, -2.5, -3.0]], [[-2.0, -2.0], [-4.0, -1.0, -0.1, -1.0]])
    together = sgdpo(policy, reference, pair_seed=seeds(8, 9)).loss
    alone = [PairLogps(side.chosen.take([1]), side.rejected.take([1])) for side in (policy, reference)]
    assert torch.equal(together[1:], sgdpo(*alone, pair_seed=seeds(9)).loss)


@pytest.mark.parametrize("transform", [length_desensitized, f_div])
def test_transforms_of_sums_are_refused_for_they_would_not_reach_the_samples(transform):
    name = transform.__name__
    assert name in contract_of(with_nll(sgdpo)).refuses
    for loss in (sgdpo, with_nll(sgdpo)):
        with pytest.raises(
            RecipeError, match=rf"^{name}: .*sgdpo.* reads tokens that it would not reach. Remove {name}"
        ):
            transform(loss)
