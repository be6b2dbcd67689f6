"""KTO and its form without drift against sums worked by hand."""

import math

import pytest
import torch

from prefopt.losses import apo_zero, apo_zero_unpaired, kto
from prefopt.types import LabelledLogps, PairLogps


@pytest.fixture
def build(answers):
    """Build policy and reference from log-ratios, labels and the mismatched answers' log-ratios."""

    def make(ratios, labels, mismatched=(0.0,)):
        mask = torch.tensor(labels)
        others = answers([[value - 1.0] for value in mismatched]), answers([[-1.0] for _ in mismatched])
        sides = answers([[value - 1.0] for value in ratios]), answers([[-1.0] for _ in ratios])
        return tuple(
            LabelledLogps(side, mask, {"kl": other}) for side, other in zip(sides, others, strict=True)
        )

    return make


def test_answers_are_judged_from_the_mean_drift(build):
    """Z = (1 + 3) / 2 = 2: the good answer at 2 is on the line, 1/2; the bad one at -1 costs 1 - sigmoid(1.5)."""
    output = kto(*build([2.0, -1.0], [True, False], [1.0, 3.0]), beta=0.5)
    assert output.loss.tolist() == pytest.approx([0.5, 0.182426], abs=1e-6)
    assert output.chosen_reward.tolist() == [1.0, -0.5]
    assert output.metrics["kl"].tolist() == [2.0, 2.0]


def test_a_negative_drift_counts_as_none(build):
    """The estimate is of a divergence, which is not negative: mean -1 is taken as 0."""
    output = kto(*build([2.0], [True], [-3.0, 1.0]), beta=0.5)
    assert output.metrics["kl"].tolist() == [0.0]
    assert output.loss.item() == pytest.approx(1 / (1 + math.exp(1.0)), rel=1e-12)


def test_class_weights_multiply_each_side(build):
    output = kto(
        *build([2.0, -1.0], [True, False], [2.0]), beta=0.5, desirable_weight=3.0, undesirable_weight=2.0
    )
    assert output.loss.tolist() == pytest.approx([1.5, 2 * 0.182426], abs=1e-6)


def test_the_drift_carries_no_gradient(build):
    """The mismatched answers stay out of the gradient; the good one has -beta / 4 on the line."""
    policy, reference = build([2.0], [True], [2.0])
    policy.answers.tokens.requires_grad_()
    policy.others["kl"].tokens.requires_grad_()
    kto(policy, reference, beta=0.5).loss.sum().backward()
    assert policy.answers.tokens.grad.item() == pytest.approx(-0.125, rel=1e-12)
    assert policy.others["kl"].tokens.grad is None


def test_far_answers_cost_their_weight_or_nothing_and_stay_exact(build):
    """At h = 200 and beta 0.5 the good answer still costs e^-100, where 1 - sigmoid would give 0."""
    loss = kto(*build([200.0, 200.0], [True, False]), beta=0.5).loss
    assert loss[0].item() == pytest.approx(math.exp(-100), rel=1e-12)
    assert loss[1].item() == pytest.approx(1.0, rel=1e-15)


def test_without_drift_the_two_sides_of_a_pair_pay_apo_zero(build):
    """1 - sigmoid(0.5 * 2) + sigmoid(0.5 * -1) = 0.268941 + 0.377541 = 0.646482."""
    policy, reference = build([2.0, -1.0], [True, False])
    loss = apo_zero_unpaired(policy, reference, beta=0.5).loss
    assert loss.tolist() == pytest.approx([0.268941, 0.377541], abs=1e-6)
    pair = [PairLogps(side.answers.take([0]), side.answers.take([1])) for side in (policy, reference)]
    assert loss.sum().item() == pytest.approx(apo_zero(*pair, beta=0.5).loss.item(), rel=1e-12)
    assert torch.equal(kto(policy, reference, beta=0.5).loss, loss)


def test_class_weights_reach_the_form_without_drift(build):
    given = build([2.0, -1.0], [True, False])
    plain = apo_zero_unpaired(*given, beta=0.5)
    heavy = apo_zero_unpaired(*given, beta=0.5, desirable_weight=0.5, undesirable_weight=4.0)
    assert heavy.loss.tolist() == pytest.approx((plain.loss * torch.tensor([0.5, 4.0])).tolist(), rel=1e-12)
    assert plain.metrics == {}


def test_class_weights_keep_the_digits_of_float64(build):
    """On the line half of each weight is paid: 1.33 / 2 and 0.7 / 2, which float32 has only to 8 digits."""
    weights = {"desirable_weight": 1.33, "undesirable_weight": 0.7}
    for loss in (kto, apo_zero_unpaired):
        output = loss(*build([0.0, 0.0], [True, False]), **weights)
        assert output.loss.tolist() == [0.665, 0.35]
