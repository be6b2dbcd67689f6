"""What the losses over lists share: unequal groups in one table, and the rewards that are logged."""

from __future__ import annotations

import pytest
import torch

from prefopt.losses import LOSSES, bound, contract_of
from prefopt.losses._lists import Grid, with_list_rewards

LISTS = [name for name, loss in LOSSES.items() if contract_of(loss).structure == "lists"]
GROUPS = ([[-1.0], [-2.0, -1.0]], [[-0.5, -0.5], [-3.0], [-1.5], [-0.25] * 3], [[-2.0], [-0.5], [-1.0]])
SHIFTED = tuple(
    [[token - 0.1 * (row + 1) for token in tokens] for row, tokens in enumerate(g)] for g in GROUPS
)
SCORES = ([0.3, 0.8], [0.1, 0.9, 0.4, 0.6], [0.7, 0.2, 0.5])


@pytest.fixture
def grid(lists):
    return Grid(lists([[-1.0], [-2.0]], [[-3.0], [-4.0], [-5.0]]))


def test_groups_of_two_and_three_become_rows_of_three(grid):
    table = grid.lay(torch.arange(5.0), fill=-1.0)
    assert table.tolist() == [[0.0, 1.0, -1.0], [2.0, 3.0, 4.0]]
    assert grid.count(torch.float32).tolist() == [2.0, 3.0]


def test_best_comes_first_equals_keep_their_order_and_holes_come_last(grid):
    assert grid.best_first(torch.tensor([1.0, 2.0, 5.0, 7.0, 5.0])).tolist() == [[1, 0, 2], [1, 0, 2]]


def test_only_higher_scores_are_better_and_never_holes(grid):
    """Row 0: 2 > 1. Row 1: 7 > 5 twice; the equal ones are not better. A hole is better than nothing."""
    better = grid.is_better(torch.tensor([-1.0, -2.0, 5.0, 7.0, 5.0]))
    assert better.nonzero().tolist() == [[0, 0, 1], [1, 1, 0], [1, 1, 2]]


def test_log_softmax_sums_to_one_in_each_group(grid):
    values = grid.log_softmax(torch.tensor([1.0, 2.0, 5.0, 7.0, 5.0]))
    assert (values.exp() * grid.mask).sum(dim=1).tolist() == pytest.approx([1.0, 1.0], rel=1e-6)
    assert values[0, 2] == 0.0


def test_rewards_are_those_of_the_best_and_the_mean_of_the_rest(grid):
    """Row 1: the best has 1, the others 5 and 3. It should beat both and does not, 5 beats 3: one pair of three.

    Row 0 has equal rewards: half.
    """
    rewards = torch.tensor([2.0, 2.0, 1.0, 5.0, 3.0])
    output = with_list_rewards(torch.zeros(2), grid, rewards, torch.tensor([0.0, 1.0, 2.0, 1.0, 0.0]))
    assert output.chosen_reward.tolist() == [2.0, 1.0]
    assert output.rejected_reward.tolist() == [2.0, 4.0]
    assert output.metrics["ranking_accuracy"].tolist() == pytest.approx([0.5, 1 / 3], rel=1e-6)


@pytest.mark.parametrize("name", LISTS)
def test_a_group_pays_alone_what_it_pays_among_others(name, lists):
    """The longest group sets the width of the table, and nothing else."""
    loss = bound(LOSSES[name], beta=0.5) if "beta" in contract_of(LOSSES[name]).settings else LOSSES[name]

    def pay(groups, references, scores):
        given = [lists(*groups)] + ([lists(*references)] if contract_of(loss).needs_reference else [])
        flat = torch.tensor([score for group in scores for score in group], dtype=torch.float64)
        return loss(*given, answer_score=flat).loss

    together = pay(GROUPS, SHIFTED, SCORES)
    alone = [pay([g], [s], [v]) for g, s, v in zip(GROUPS, SHIFTED, SCORES, strict=True)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-14, atol=0.0)


@pytest.mark.parametrize("name", LISTS)
def test_order_within_a_group_does_not_matter(name, lists):
    """Scores are all different, so turning the answers round changes nothing but the order of sums."""
    loss = LOSSES[name]

    def pay(step):
        given = [lists(*[g[::step] for g in GROUPS])]
        given += [lists(*[g[::step] for g in SHIFTED])] if contract_of(loss).needs_reference else []
        flat = torch.tensor([score for group in SCORES for score in group[::step]], dtype=torch.float64)
        return loss(*given, answer_score=flat)

    forward, backward = pay(1), pay(-1)
    torch.testing.assert_close(forward.loss, backward.loss, rtol=1e-13, atol=0.0)
    torch.testing.assert_close(forward.chosen_reward, backward.chosen_reward, rtol=0.0, atol=0.0)
