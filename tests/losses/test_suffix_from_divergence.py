"""Sums from the first differing token: values by hand, and the edges of what two answers may share."""

import math

import pytest
import torch

from prefopt.losses import dpo, nca_pair, suffix_from_divergence, tdpo
from prefopt.types import PairLogps


def ids(answers, rows):
    flat = torch.tensor([token for row in rows for token in row])
    return answers.with_stats({"token_id": flat})


@pytest.fixture
def policy(answers):
    """The first pair shares two tokens of 4 and 3; the second none of 1 and 2."""
    return PairLogps(
        ids(
            answers([[-1.0, -2.0, -3.0, -4.0], [-1.0]], kl=[[0.1, 0.2, 0.3, 0.4], [0.5]]),
            [[7, 8, 9, 9], [1]],
        ),
        ids(
            answers([[-1.0, -2.0, -6.0], [-2.0, -2.0]], kl=[[0.1, 0.2, 0.6], [0.1, 0.1]]), [[7, 8, 1], [2, 1]]
        ),
    )


@pytest.fixture
def reference(pairs):
    return pairs([[-1.5, -2.0, -2.0, -2.0], [-2.0]], [[-1.5, -2.0, -3.0], [-1.0, -1.0]])


def test_rewards_count_from_the_first_difference(policy, reference):
    """(-3 + -4) - (-2 + -2) = -3 and -6 - -3 = -3; the shared 0.5 of the first token is left out of both."""
    output = suffix_from_divergence(dpo)(policy, reference)
    assert output.chosen_reward.tolist() == pytest.approx([-0.3, 0.1], rel=1e-13)
    assert output.rejected_reward.tolist() == pytest.approx([-0.3, -0.2], rel=1e-13)


def test_on_log_ratios_the_margin_is_that_of_the_whole_answers(policy, reference):
    """What is shared is in both sums, so it cancels."""
    whole, suffix = dpo(policy, reference), suffix_from_divergence(dpo)(policy, reference)
    torch.testing.assert_close(suffix.loss, whole.loss, rtol=1e-15, atol=0.0)


def test_a_length_penalty_divides_by_the_counted_tokens(policy, reference):
    """Penalty 1: -3 / 2 - -3 / 1 = 1.5 and 1 / 1 - -2 / 2 = 2; penalty 0.5 divides by the root."""
    means = suffix_from_divergence(dpo, length_penalty=1.0)(policy, reference).loss
    assert means.tolist() == pytest.approx([math.log1p(math.exp(-m)) for m in (0.15, 0.2)], rel=1e-14)
    roots = suffix_from_divergence(dpo, length_penalty=0.5)(policy, reference)
    assert roots.chosen_reward[0].item() == pytest.approx(-0.3 / math.sqrt(2), rel=1e-14)


def test_a_loss_on_each_answer_no_longer_pays_for_what_is_shared(policy, reference):
    """The rewards that nca_pair pays for are those of the suffix."""
    output = suffix_from_divergence(nca_pair)(policy, reference)
    assert output.chosen_reward[0].item() == pytest.approx(-3.0 * 0.01, rel=1e-13)
    assert not torch.equal(output.loss[:1], nca_pair(policy, reference).loss[:1])


def test_the_divergence_is_cut_too(policy, reference):
    """K = 0.3 + 0.4 and 0.6 in the first pair."""
    metrics = suffix_from_divergence(tdpo)(policy, reference).metrics
    assert metrics["chosen_kl"].tolist() == pytest.approx([0.7, 0.5], rel=1e-14)
    assert metrics["rejected_kl"].tolist() == pytest.approx([0.6, 0.2], rel=1e-14)


def test_a_beginning_of_the_other_answer_has_nothing_left(answers):
    """Chosen [7, 8] begins rejected [7, 8, 9]: sums 0 and -3; two equal answers cost log 2."""
    policy = PairLogps(
        ids(answers([[-1.0, -2.0], [-4.0]]), [[7, 8], [5]]),
        ids(answers([[-1.0, -2.0, -3.0], [-4.0]]), [[7, 8, 9], [5]]),
    )
    reference = PairLogps(answers([[0.0, 0.0], [-1.0]]), answers([[0.0, 0.0, 0.0], [-1.0]]))
    output = suffix_from_divergence(dpo, length_penalty=1.0)(policy, reference)
    assert output.chosen_reward.tolist() == [0.0, 0.0]
    assert output.rejected_reward.tolist() == pytest.approx([-0.3, 0.0], rel=1e-14)
    assert output.loss[1].item() == pytest.approx(math.log(2), rel=1e-15)
