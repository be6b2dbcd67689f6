"""Several references as one: harmonic mean, extrapolation, earlier rounds."""

from __future__ import annotations

import math

import pytest
import torch

from prefopt.errors import RecipeError
from prefopt.losses import dpo, length_desensitized, momentum_ref, multi_ref, simpo, spo_sequential
from prefopt.types import PairLogps, SeqLogps


def side(total: float, *others: float) -> SeqLogps:
    """One answer of two tokens whose log-probs add up to ``total``, and so on for each further reference."""
    parts = {f"reference_{k}": [halves(value)] for k, value in enumerate(others, 2)}
    return SeqLogps.from_ragged([halves(total)], **parts)


def halves(total: float) -> torch.Tensor:
    return torch.tensor([0.25 * total, 0.75 * total], dtype=torch.float64)


POLICY = PairLogps(side(-10.0), side(-14.0))


def margin(transform, reference: PairLogps, **settings) -> float:
    """Read the margin back from DPO's cost at beta 1: m = -log(exp(cost) - 1)."""
    cost = transform(dpo, **settings)(POLICY, reference, beta=1.0).loss.item()
    return -math.log(math.expm1(cost))


def test_two_references_of_equal_weight_average_inverse_probabilities() -> None:
    """Epsilon 0.99 clips nothing here: the bands are 0.99 * 12 / 27 = 44 % and 56 % of the log-probs.

    R = -log(0.5 e^12 + 0.5 e^11) for the chosen, -log(0.5 e^15 + 0.5 e^16) for the rejected; m = 4 - (R_w - R_l).
    """
    reference = PairLogps(side(-12.0, -11.0), side(-15.0, -16.0))
    chosen = -math.log(0.5 * math.exp(12) + 0.5 * math.exp(11))
    rejected = -math.log(0.5 * math.exp(15) + 0.5 * math.exp(16))
    found = margin(multi_ref, reference, weights="equal", epsilon=0.99)
    assert found == pytest.approx(4.0 - (chosen - rejected), rel=1e-12)


def test_adaptive_weights_are_the_shares_of_the_gaps() -> None:
    """Gaps 3 and 5: the first weighs 3/8, the second 5/8."""
    reference = PairLogps(side(-12.0, -11.0), side(-15.0, -16.0))
    chosen = -math.log(3 / 8 * math.exp(12) + 5 / 8 * math.exp(11))
    rejected = -math.log(3 / 8 * math.exp(15) + 5 / 8 * math.exp(16))
    assert margin(multi_ref, reference, epsilon=0.99) == pytest.approx(4.0 - (chosen - rejected), rel=1e-12)


def test_other_references_are_held_near_the_last() -> None:
    """Chosen -30 against -10, rejected -20 against -20: B = 20 and 20, so each band is 0.1 / 2 = 5 %.

    -30 is clipped to -10.5; with equal weights R_w = -log(0.5 e^10.5 + 0.5 e^10) and R_l = -20.
    """
    reference = PairLogps(side(-30.0, -10.0), side(-20.0, -20.0))
    chosen = -math.log(0.5 * math.exp(10.5) + 0.5 * math.exp(10))
    found = margin(multi_ref, reference, weights="equal", epsilon=0.1)
    assert found == pytest.approx(4.0 - (chosen + 20.0), rel=1e-12)


def test_a_band_of_zero_leaves_the_last_reference() -> None:
    reference = PairLogps(side(-30.0, -11.0), side(-2.0, -16.0))
    assert margin(multi_ref, reference, epsilon=0.0) == pytest.approx(4.0 - 5.0, rel=1e-12)


def test_equal_references_are_one() -> None:
    """Also where no gap tells the answers apart, which leaves nothing to share out: 4 - 0."""
    assert margin(multi_ref, PairLogps(side(-12.0, -12.0), side(-12.0, -12.0))) == pytest.approx(4.0)
    for transform in (multi_ref, momentum_ref, spo_sequential):
        reference = PairLogps(side(-12.0, -12.0), side(-15.0, -15.0))
        assert margin(transform, reference) == pytest.approx(4.0 - 3.0, rel=1e-12)


def test_momentum_goes_on_beyond_the_newest() -> None:
    """Chosen -12 now, -13 before: 1.5 * -12 - 0.5 * -13 = -11.5; rejected -15 and -15 stay; m = 4 - 3.5."""
    reference = PairLogps(side(-12.0, -13.0), side(-15.0, -15.0))
    assert margin(momentum_ref, reference, alpha=0.5) == pytest.approx(0.5, rel=1e-12)


def test_sequential_keeps_what_all_earlier_rounds_gained() -> None:
    """Chosen rounds -12, -13, -15: -12 + 0.5 * ((-12 + 13) + (-13 + 15)) = -10.5; rejected -15 throughout."""
    reference = PairLogps(side(-12.0, -13.0, -15.0), side(-15.0, -15.0, -15.0))
    assert margin(spo_sequential, reference, keep=0.5) == pytest.approx(4.0 - 4.5, rel=1e-12)


def test_refused_without_a_reference_or_twice() -> None:
    with pytest.raises(RecipeError, match=r"^multi_ref: simpo has no reference to combine with others"):
        multi_ref(simpo)
    with pytest.raises(RecipeError, match=r"momentum_ref: .* already combines its references by multi_ref"):
        momentum_ref(multi_ref(dpo))


def test_what_changes_tokens_goes_inside() -> None:
    """Tails beyond the shorter answer are cut from the combined reference, not from the first one alone."""
    with pytest.raises(
        RecipeError, match=r"^length_desensitized: .* Remove length_desensitized, or apply it first"
    ):
        length_desensitized(multi_ref(dpo))
    assert momentum_ref(length_desensitized(dpo))
