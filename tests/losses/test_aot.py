"""AOT against sums worked by hand."""

import math

import pytest
import torch

from prefopt.losses import aot, aot_unpaired, dpo
from prefopt.types import LabelledLogps, PairLogps


@pytest.fixture
def two(pairs):
    """Margins 3 and 1 of the policy, 0 and 2 of the reference."""
    return pairs([[-1.0], [-2.0]], [[-4.0], [-3.0]]), pairs([[-2.0], [-1.0]], [[-2.0], [-3.0]])


def test_margins_meet_those_of_equal_rank(two):
    """Sorted 1 3 and 0 2, so both pairs lie 1 beyond: log(1 + e^-0.5) = 0.474077 at beta 0.5. DPO sees 3 and -1."""
    assert aot(*two, beta=0.5).loss.tolist() == pytest.approx([0.474077] * 2, abs=1e-6)
    assert dpo(*two, beta=0.5).loss.tolist() == pytest.approx(
        [math.log1p(math.exp(-1.5)), math.log1p(math.exp(0.5))], rel=1e-12
    )


def test_each_pair_pays_for_its_own_margin(pairs):
    """Margins 5 and 0 against 1 and 1: 4 and -1, so 0.018150 and 1.313262 at beta 1."""
    policy, reference = pairs([[0.0], [0.0]], [[-5.0], [0.0]]), pairs([[0.0], [0.0]], [[-1.0], [-1.0]])
    assert aot(policy, reference, beta=1.0).loss.tolist() == pytest.approx([0.018150, 1.313262], abs=1e-6)


def test_rewards_stay_those_of_each_answer(two):
    """Log-ratios 1 and -1 of the chosen, -2 and 0 of the rejected, times 0.5."""
    output = aot(*two, beta=0.5)
    assert output.chosen_reward.tolist() == [0.5, -0.5]
    assert output.rejected_reward.tolist() == [-1.0, 0.0]


def test_smoothing_mixes_in_the_flipped_label(two):
    """0.9 * 0.474077 + 0.1 * 0.974077 = 0.524077."""
    loss = aot(*two, beta=0.5, label_smoothing=0.1).loss
    assert loss.tolist() == pytest.approx([0.524077] * 2, abs=1e-6)


def test_policy_margins_that_dominate_cost_less_than_log_two_everywhere(pairs):
    """Whichever pairs they belong to: 3 1 2 beyond 0.5 2.5 1.5 by one half each."""
    policy = pairs([[3.0], [1.0], [2.0]], [[0.0]] * 3)
    reference = pairs([[0.5], [2.5], [1.5]], [[0.0]] * 3)
    assert aot(policy, reference, beta=1.0).loss.tolist() == pytest.approx([math.log1p(math.exp(-0.5))] * 3)


def sides(answers, ratios, labels):
    policy = answers([[ratio - 1.0] for ratio in ratios])
    reference = answers([[-1.0] for _ in ratios])
    mask = torch.tensor(labels)
    return LabelledLogps(policy, mask), LabelledLogps(reference, mask)


def test_unpaired_answers_meet_the_other_side_at_their_quantile(answers):
    """Good 2 and 0, bad 1: the bad one stands for all quantiles, and meets 1 in the middle between 2 and 0.

    2 - 1 = 1, 0 - 1 = -1 and 1 - 1 = 0: 0.313262, 1.313262 and log 2 at beta 1.
    """
    given = sides(answers, [2.0, 1.0, 0.0], [True, False, True])
    loss = aot_unpaired(*given, beta=1.0).loss
    assert loss.tolist() == pytest.approx([0.313262, math.log(2), 1.313262], abs=1e-6)


def test_as_many_on_either_side_pay_the_matching_twice(answers):
    """Good 3 1 and bad 0 2: 1 beyond each, paid by both of a match, so the mean over answers is that of matches."""
    given = sides(answers, [3.0, 0.0, 2.0, 1.0], [True, False, False, True])
    assert aot_unpaired(*given, beta=0.5).loss.tolist() == pytest.approx([0.474077] * 4, abs=1e-6)


def test_a_step_with_one_side_alone_costs_nothing(answers):
    for label in (True, False):
        policy, reference = sides(answers, [2.0, 1.0], [label, label])
        policy.answers.tokens.requires_grad_()
        output = aot_unpaired(policy, reference, beta=0.5)
        assert output.loss.tolist() == [0.0, 0.0]
        output.loss.sum().backward()
        assert policy.answers.tokens.grad.tolist() == [0.0, 0.0]
        assert output.chosen_reward.tolist() == [1.0, 0.5]


def test_order_of_the_answers_does_not_matter_to_what_each_pays(answers):
    ratios, labels, order = [0.3, -1.0, 2.0, 0.7, -0.2], [True, False, True, False, False], [3, 1, 4, 0, 2]
    before = aot_unpaired(*sides(answers, ratios, labels), beta=1.0).loss
    moved = sides(answers, [ratios[i] for i in order], [labels[i] for i in order])
    assert torch.equal(aot_unpaired(*moved, beta=1.0).loss, before[order])


def test_the_gradient_reaches_the_reference_of_no_pair(two):
    """Each policy margin gets its own slope; the reference is data."""
    policy, reference = two
    policy = PairLogps(policy.chosen, policy.rejected)
    policy.chosen.tokens.requires_grad_()
    aot(policy, reference, beta=0.5).loss.sum().backward()
    slope = -0.5 / (1 + math.exp(0.5))
    assert policy.chosen.tokens.grad.tolist() == pytest.approx([slope, slope], rel=1e-12)
