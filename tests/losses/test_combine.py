"""Transforms and mixtures: values by hand, what they leave alone, and what they refuse."""

import inspect
import math

import pytest
import torch
from torch import Tensor

from prefopt.errors import RecipeError
from prefopt.losses import (
    bound,
    contract_of,
    dpo,
    f_div,
    hinge,
    ipo,
    ld_dpo,
    length_desensitized,
    mixed,
    sft,
    simpo,
    weighted,
    with_nll,
    wpo,
)
from prefopt.types import LossOutput, PairLogps, SeqLogps


@pytest.fixture
def policy(answers):
    """One pair: chosen of three tokens (mean -2), rejected of one; A = 0.1 - 0.4 = -0.3."""
    return PairLogps(
        chosen=answers([[-1.0, -2.0, -3.0]], log_sum_p2=[[-1.0, -2.0, -3.3]]),
        rejected=answers([[-4.0]], log_sum_p2=[[-3.6]]),
    )


@pytest.fixture
def reference(pairs):
    return pairs([[-1.0, -2.0, -4.0]], [[-3.0]])


DPO = math.log1p(math.exp(-0.2))  # D = (-6 - -7) - (-4 - -3) = 2 at beta 0.1: 0.598139


def test_with_nll_adds_alpha_times_the_mean_of_the_chosen(policy, reference):
    """0.598139 + 0.5 * (1 + 2 + 3) / 3 = 1.598139."""
    output = with_nll(dpo, alpha=0.5)(policy, reference)
    assert output.loss.item() == pytest.approx(1.598139, abs=1e-6)  # six digits are written above
    assert output.metrics["nll"].item() == pytest.approx(2.0, rel=1e-15)
    assert output.chosen_reward.item() == pytest.approx(0.1, rel=1e-14)


def test_with_nll_over_the_tokens_of_the_step(policy, reference):
    """Mean length 4: 0.598139 + 1 * 6 / 4 = 2.098139."""
    loss = with_nll(dpo, nll="batch_token")
    length = torch.tensor(4.0, dtype=torch.float64)
    assert loss(policy, reference, mean_chosen_length=length).loss.item() == pytest.approx(2.098139, abs=1e-6)
    with pytest.raises(TypeError, match="mean_chosen_length"):
        loss(policy, reference)


def test_weighted_spares_the_likelihood_outside_it_only(policy, reference):
    """The weight is e^-0.3 = 0.740818: outside 0.740818 * 0.598139 + 2; inside 0.740818 * (0.598139 + 2)."""
    outside = with_nll(weighted(dpo))(policy, reference).loss.item()
    inside = weighted(with_nll(dpo))(policy, reference).loss.item()
    assert outside == pytest.approx(math.exp(-0.3) * DPO + 2.0, rel=1e-14)
    assert inside == pytest.approx(math.exp(-0.3) * (DPO + 2.0), rel=1e-14)


def test_length_desensitized_leaves_likelihood_and_lengths_alone(policy, reference):
    """Totals -1 - 2.5 = -3.5 and -1 - 3 = -4: D = 0.5 - -1 = 1.5, m = 0.15; the NLL is still 2."""
    for loss in (with_nll(length_desensitized(dpo)), length_desensitized(with_nll(dpo))):
        output = loss(policy, reference)
        assert output.loss.item() == pytest.approx(math.log1p(math.exp(-0.15)) + 2.0, rel=1e-14)
        assert output.metrics["nll"].item() == 2.0


def test_length_desensitized_acts_on_per_token_losses_through_the_total(policy, reference):
    """IPO: 0.5 / 3 - -1 / 1 = 1.166667 against 5; SimPO: 2 * (-3.5 / 3 - -4) - 1 = 4.666667."""
    loss = length_desensitized(ipo)(policy, reference).loss.item()
    assert loss == pytest.approx((0.5 / 3.0 + 1.0 - 5.0) ** 2, rel=1e-14)
    loss = length_desensitized(simpo)(policy).loss.item()
    assert loss == pytest.approx(math.log1p(math.exp(-(2.0 * (-3.5 / 3.0 + 4.0) - 1.0))), rel=1e-14)


def test_length_desensitized_can_leave_the_reference_alone(policy, reference):
    """Policy -3.5 against the whole -7: D = 3.5 - -1 = 4.5, m = 0.45."""
    loss = length_desensitized(dpo, apply_to_reference=False)(policy, reference).loss.item()
    assert loss == pytest.approx(math.log1p(math.exp(-0.45)), rel=1e-14)


SCORES = {
    # divergence: score of log-ratio +1, of -1, and DPO at beta 0.1 of their difference
    "reverse_kl": (1.0, -1.0, 0.598139),
    "forward_kl": (0.632121, -1.718282, 0.582517),
    "js": (0.379885, -0.620115, 0.644397),
    "alpha": (0.786939, -1.297443, 0.594349),
}


@pytest.mark.parametrize("divergence", SCORES)
def test_f_div_puts_a_score_in_the_place_of_each_log_ratio(policy, reference, divergence):
    """Forward KL 1 - e^-1 and 1 - e; JS log(2 sigmoid(+-1)); alpha 1 / 2 gives 2 (1 - e^-.5) and 2 (1 - e^.5).

    E.g. forward KL: log(1 + e^-0.2350402) = 0.582517.
    """
    output = f_div(dpo, divergence=divergence)(policy, reference)
    chosen, rejected, loss = SCORES[divergence]
    assert output.loss.item() == pytest.approx(loss, abs=1e-6)  # six digits are written above
    assert output.chosen_reward.item() == pytest.approx(0.1 * chosen, abs=1e-7)
    assert output.rejected_reward.item() == pytest.approx(0.1 * rejected, abs=1e-7)


def test_f_div_reaches_other_losses_and_divides_by_length_after(policy, reference):
    """Hinge: 1 - 0.05 * (0.632121 + 1.718282) = 0.882480; IPO: 0.632121 / 3 + 1.718282 - 5 squared."""
    loss = f_div(hinge, divergence="forward_kl")(policy, reference).loss.item()
    assert loss == pytest.approx(0.882480, abs=1e-6)  # six digits are written above
    loss = f_div(ipo, divergence="forward_kl")(policy, reference).loss.item()
    expected = ((1.0 - math.exp(-1.0)) / 3.0 + (math.e - 1.0) - 5.0) ** 2
    assert loss == pytest.approx(expected, rel=1e-14)


def test_f_div_leads_from_reverse_to_forward_kl(policy, reference):
    """The score (1 - e^(-alpha h)) / alpha is h at 0 and 1 - e^-h at 1, and off by about the distance between."""
    for alpha, limit in ((1e-9, "reverse_kl"), (1.0 - 1e-9, "forward_kl")):
        loss = f_div(dpo, alpha=alpha)(policy, reference).loss.item()
        assert loss == pytest.approx(f_div(dpo, divergence=limit)(policy, reference).loss.item(), rel=1e-8)


def test_f_div_acts_on_sums_that_were_desensitized_before(policy, reference):
    """Totals as above: h = -3.5 - -4 = 0.5 and -1; forward KL scores 1 - e^-.5 and 1 - e."""
    loss = length_desensitized(f_div(dpo, divergence="forward_kl"))(policy, reference).loss.item()
    margin = 0.1 * (math.e - math.exp(-0.5))
    assert loss == pytest.approx(math.log1p(math.exp(-margin)), rel=1e-14)


def test_f_div_leaves_likelihood_alone(policy, reference):
    output = f_div(with_nll(dpo), divergence="js")(policy, reference)
    assert output.metrics["nll"].item() == 2.0


def test_f_div_has_no_gradient_beyond_the_clamp(pairs):
    """At h = -41 the exponent of the forward KL is held at 40: score 1 - e^40, slope 0; at -39 slope e^39."""
    policy, zero = pairs([[-41.0], [-39.0]], [[0.0]] * 2), pairs([[0.0]] * 2, [[0.0]] * 2)
    policy.chosen.tokens.requires_grad_()
    loss = f_div(bound(ipo, beta=0.1, norm="sum"), divergence="forward_kl")(policy, zero).loss
    loss.sum().backward()
    assert loss[0].item() == pytest.approx((4.0 + math.exp(40.0)) ** 2, rel=1e-14)
    assert policy.chosen.tokens.grad[0].item() == 0.0
    assert policy.chosen.tokens.grad[1].item() == pytest.approx(-2.0 * math.exp(78.0), rel=1e-14)


def test_mixed_adds_up_and_reports_every_part(policy, reference):
    """0.8 * 0.598139 + 0.2 * log(1 + e^-3), SimPO's margin being 2 * (-2 - -4) - 1 = 3."""
    loss = mixed([bound(dpo, beta=0.1, label_smoothing=0.0), bound(simpo, beta=2.0)], [0.8, 0.2])
    output = loss(policy, reference)
    parts = DPO, math.log1p(math.exp(-3.0))
    assert output.loss.item() == pytest.approx(0.8 * parts[0] + 0.2 * parts[1], rel=1e-14)
    assert output.metrics["dpo/loss"].item() == pytest.approx(parts[0], rel=1e-14)
    assert output.metrics["simpo/loss"].item() == pytest.approx(parts[1], rel=1e-14)
    assert output.chosen_reward.item() == pytest.approx(0.1, rel=1e-14)  # of dpo, the first
    assert contract_of(loss).name == "mixed(0.8 * dpo, 0.2 * simpo)"


def test_mixed_tells_parts_of_one_name_apart(policy, reference):
    parts = [bound(wpo, beta=beta, label_smoothing=0.0, max_weight=1.0) for beta in (0.1, 0.5)]
    metrics = mixed(parts, [1.0, 1.0])(policy, reference).metrics
    assert set(metrics) == {"wpo/loss", "wpo/weight", "wpo_2/loss", "wpo_2/weight"}
    assert metrics["wpo/loss"].item() != metrics["wpo_2/loss"].item()


def test_a_reference_free_mixture_takes_no_reference(policy, reference):
    loss = mixed([bound(simpo, beta=1.0, gamma=0.0, label_smoothing=0.0, link="hinge")] * 2, [1.0, 1.0])
    assert not contract_of(loss).needs_reference
    with pytest.raises(TypeError, match="too many positional arguments"):
        loss(policy, reference)


def needs_length(policy: SeqLogps, *, mean_chosen_length: Tensor) -> LossOutput:
    """Pay the step's mean length for every answer."""
    return LossOutput(loss=policy.mean * 0.0 + mean_chosen_length)


def test_an_input_that_one_part_requires_is_required():
    """``sft`` can do without ``mean_chosen_length``, the other part cannot."""
    for parts in ([bound(sft, nll="sequence"), needs_length], [needs_length, bound(sft, nll="sequence")]):
        assert contract_of(mixed(parts, [1.0, 1.0])).inputs == {"mean_chosen_length": True}


def test_bound_settings_leave_the_signature_and_stay(policy, reference):
    loss = bound(dpo, beta=0.5)
    assert list(inspect.signature(loss).parameters) == ["policy", "reference", "label_smoothing"]
    assert torch.equal(loss(policy, reference).loss, dpo(policy, reference, beta=0.5).loss)
    with pytest.raises(TypeError, match="beta"):
        loss(policy, reference, beta=0.1)


def test_open_settings_of_the_wrapped_loss_stay_open(policy, reference):
    loss = with_nll(dpo, alpha=0.5)
    expected = dpo(policy, reference, beta=0.7).loss + 1.0
    assert torch.allclose(loss(policy, reference, beta=0.7).loss, expected, rtol=1e-15)


@pytest.mark.parametrize(
    ("compose", "message"),
    [
        (
            lambda: weighted(sft),
            "weighted: needs a loss over pairs, but sft learns from single answers. Remove weighted.",
        ),
        (lambda: with_nll(sft), "with_nll: needs a loss over pairs, but sft learns from single answers."),
        (lambda: length_desensitized(sft), "length_desensitized: needs a loss over pairs"),
        (lambda: weighted(wpo), "weighted: wpo already contains it. Apply it once."),
        (lambda: length_desensitized(ld_dpo), "length_desensitized: ld_dpo already contains it."),
        (
            lambda: with_nll(weighted(with_nll(dpo))),
            r"with_nll: weighted\(with_nll\(dpo\)\) already contains it.",
        ),
        (
            lambda: weighted(mixed([wpo, bound(simpo, beta=1.0, label_smoothing=0.0)], [1, 1])),
            "weighted: mixed.* already contains it.",
        ),
        (
            lambda: weighted(mixed([bound(simpo, beta=1.0, label_smoothing=0.0), wpo], [1, 1])),
            "weighted: mixed.* already contains it.",
        ),
        (
            lambda: length_desensitized(simpo, apply_to_reference=False),
            "length_desensitized.apply_to_reference: simpo has no reference. Remove the setting.",
        ),
        (lambda: with_nll(dpo, alpha=-1.0), "with_nll.alpha: -1.0 is out of range. Give a number >= 0."),
        (
            lambda: length_desensitized(dpo, alpha=1.5),
            "alpha: 1.5 is out of range. Give a number >= 0 and <= 1.",
        ),
        (lambda: f_div(simpo), "f_div: simpo has no reference to diverge from. Remove f_div."),
        (lambda: f_div(sft), "f_div: needs a loss over pairs, but sft learns from single answers."),
        (lambda: f_div(f_div(dpo)), r"f_div: f_div\(dpo\) already contains it."),
        (
            lambda: f_div(ld_dpo),
            "f_div: ld_dpo sums tokens anew, which would undo it. Apply f_div before length_desensitized.",
        ),
        (lambda: f_div(with_nll(length_desensitized(ipo))), "f_div: .* sums tokens anew"),
        (
            lambda: f_div(dpo, divergence="js", alpha=0.3),
            "f_div.alpha: 0.3 has no effect with divergence: js. Leave it out, or set divergence: alpha.",
        ),
        (lambda: f_div(dpo, alpha=1.0), "f_div.alpha: 1.0 is out of range. Give a number > 0 and < 1."),
        (lambda: f_div(dpo, divergence="kl"), "f_div.divergence: 'kl' is no choice."),
        (lambda: weighted(dpo, max_weight=0), "weighted.max_weight: 0 is out of range."),
        (
            lambda: with_nll(dpo, nll="token"),
            "with_nll.nll: 'token' is no choice. Did you mean 'batch_token'",
        ),
        (lambda: bound(dpo, betta=1.0), "dpo.betta: dpo has no such setting. Did you mean 'beta'"),
        (lambda: bound(dpo, beta=0), "dpo.beta: 0 is out of range."),
        (lambda: mixed([], []), "mixed: 0 losses but 0 weights."),
        (lambda: mixed([dpo], [0.5, 0.5]), "mixed: 1 losses but 2 weights."),
        (lambda: mixed([dpo], [0]), r"mixed.weights\[0\]: 0 is out of range."),
        (
            lambda: mixed([dpo, sft], [1, 1]),
            "dpo learns from pairs, sft learns from single answers. Mix losses of one",
        ),
        (
            lambda: mixed([dpo, ipo], [1, 1]),
            r"mixed: more than one part has the setting 'beta'. Close it first",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(compose, message):
    with pytest.raises(RecipeError, match=message) as caught:
        compose()
    assert "\n" not in str(caught.value)


def test_what_has_been_bound_refuses_plain_tensors(policy, reference):
    """The arithmetic itself checks nothing and would fail somewhere inside."""
    loss = bound(dpo, beta=0.1)
    with pytest.raises(TypeError, match=r"^dpo: policy is of type Tensor\. Build a prefopt\.PairLogps\.$"):
        loss(policy.chosen.total, reference.chosen.total)
    with pytest.raises(TypeError, match="dpo: reference is of type SeqLogps"):
        loss(policy, reference.chosen)
