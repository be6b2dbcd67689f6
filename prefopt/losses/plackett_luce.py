"""Listwise DPO: the likelihood of the whole ranking under the Plackett-Luce model."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from prefopt.losses._door import checked
from prefopt.losses._lists import Grid, with_list_rewards
from prefopt.losses._terms import log_ratio
from prefopt.types import ListLogps, LossOutput, Range


@checked
def plackett_luce(
    policy: ListLogps,
    reference: ListLogps,
    *,
    answer_score: Tensor,
    beta: Annotated[float, Range(gt=0)] = 0.1,
) -> LossOutput:
    """Pay the negative log-likelihood of the ranking, the best answer drawn first, then the next best.

    DPO for lists: all answers to a prompt at once, by their order alone. With two answers it is ``dpo``.
    The sizes of the score gaps do not count (``infonca_k`` and ``pro_rank`` use them), and a mistake at the top
    costs as much as one further down (``tree`` weighs them). Among equal scores the order of the data decides.

    When:
        each row has several answers with scores

    Args:
        policy: G groups of answers under the model being trained.
        reference: the same groups under the reference.
        answer_score: [S] score of every answer; only their order counts.
        beta: reward per nat of log-ratio.

    Returns:
        Loss [G]; rewards [G], beta times the log-ratio: of the best answer, and the mean of the others'; metric
        ``ranking_accuracy`` [G].

    Formula:
        h = policy - reference, sums of log-probs, for each answer; answers in order of falling score
        loss = sum over k < K of -log(exp(beta * h_k) / sum over j >= k of exp(beta * h_j))

    Source:
        Rafailov, Sharma, Mitchell, Ermon, Manning and Finn, "Direct Preference Optimization: Your
        Language Model is Secretly a Reward Model", 2023, arXiv 2305.18290, appendix A.3.
    """
    grid = Grid(policy)
    rewards = beta * log_ratio(policy.answers, reference.answers)
    order = grid.best_first(answer_score)
    ranked = grid.lay(rewards).gather(1, order)
    is_there = grid.mask.gather(1, order)
    loss = torch.where(is_there, first_of_rest(ranked, is_there), 0.0).sum(dim=1)
    return with_list_rewards(loss, grid, rewards, answer_score)


def first_of_rest(ranked: Tensor, is_there: Tensor) -> Tensor:
    """Return -log of the share of each column among itself and those behind it, [G, K]."""
    size = ranked.shape[1]
    behind = torch.ones(size, size, dtype=torch.bool, device=ranked.device).triu()
    # a hole sees itself, so that no row is empty: its gradient would be NaN
    seen = behind & (is_there[:, None, :] | torch.eye(size, dtype=torch.bool, device=ranked.device))
    rest = torch.where(seen, ranked[:, None, :], -torch.inf).logsumexp(dim=2)
    return rest - ranked
