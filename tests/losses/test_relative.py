"""Relative preference optimization against sums worked by hand."""

import math

import pytest
import torch

from prefopt.errors import RecipeError
from prefopt.losses import relative


def cost(margin):
    return math.log1p(math.exp(-margin))


@pytest.fixture
def given(pairs):
    """Log-ratios 1 and 2 of the chosen, 0 and -1 of the rejected: margins 1 2 and 2 3."""
    return pairs([[-1.0], [-2.0]], [[-3.0], [-4.0]]), pairs([[-2.0], [-4.0]], [[-3.0], [-3.0]])


ACROSS = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
"""Two prompts that have nothing in common; lengths of embeddings do not matter."""


def test_near_prompts_count_more(given):
    """Distances 0 and 1 at tau 0.5: weights 1 / (1 + e^-2) = 0.880797 and 0.119203, inside the sigmoid."""
    near, far = 0.880797, 0.119203
    loss = relative(*given, prompt_embedding=ACROSS, beta=1.0).loss
    wanted = [(cost(near * 1) + cost(far * 2)) / 2, (cost(far * 2) + cost(near * 3)) / 2]
    assert loss.tolist() == pytest.approx(wanted, abs=1e-6)


def test_prompts_alike_count_alike(given):
    """Both weights are 1/2: the first pair pays for 0.5 and 1.0."""
    alike = torch.tensor([[3.0, 3.0], [1.0, 1.0]])
    loss = relative(*given, prompt_embedding=alike, beta=1.0).loss
    assert loss.tolist() == pytest.approx(
        [(cost(0.5) + cost(1.0)) / 2, (cost(1.0) + cost(1.5)) / 2], rel=1e-6
    )


def test_a_smaller_tau_looks_at_the_own_prompt_alone(given):
    """At tau 0.01 the other weighs e^-100: its margin is 0 and costs log 2."""
    loss = relative(*given, prompt_embedding=ACROSS, beta=1.0, tau=0.01).loss
    assert loss.tolist() == pytest.approx(
        [(cost(1) + math.log(2)) / 2, (cost(3) + math.log(2)) / 2], rel=1e-6
    )


def test_the_diagonal_form_needs_no_embeddings(given):
    """0.8 * log(1 + e^-1) + 0.2 * log(1 + e^-2) = 0.275995 and 0.8 * log(1 + e^-3) + 0.2 * log(1 + e^-2)."""
    loss = relative(*given, beta=1.0, weighting="diagonal").loss
    assert loss.tolist() == pytest.approx(
        [0.8 * cost(1) + 0.2 * cost(2), 0.8 * cost(3) + 0.2 * cost(2)], rel=1e-12
    )
    assert loss[0].item() == pytest.approx(0.275995, abs=1e-6)


def test_the_diagonal_form_averages_over_all_others(pairs):
    """Three pairs: L_01 and L_02 share the 0.2."""
    policy, zero = pairs([[1.0], [0.0], [0.0]], [[0.0], [-1.0], [2.0]]), pairs([[0.0]] * 3, [[0.0]] * 3)
    loss = relative(policy, zero, beta=1.0, weighting="diagonal").loss
    assert loss[0].item() == pytest.approx(0.8 * cost(1) + 0.1 * (cost(2) + cost(-1)), rel=1e-12)


def test_embeddings_are_asked_for_where_they_weigh(given):
    with pytest.raises(
        RecipeError, match=r"relative.weighting: 'embedding' needs the input prompt_embedding"
    ):
        relative(*given)


def test_rewards_are_those_of_dpo(given):
    output = relative(*given, prompt_embedding=ACROSS, beta=0.5)
    assert output.chosen_reward.tolist() == [0.5, 1.0]
    assert output.rejected_reward.tolist() == [0.0, -0.5]
