"""Tree preference optimization: a ranking of K answers in which mistakes at the top cost most."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from torch import Tensor

from prefopt.losses._door import checked
from prefopt.losses._lists import Grid, with_list_rewards
from prefopt.losses._terms import log_ratio, logistic, safe_exp, stop
from prefopt.types import ListLogps, LossOutput, Range


@checked
def tree(
    policy: ListLogps,
    reference: ListLogps,
    *,
    answer_score: Tensor,
    beta: Annotated[float, Range(gt=0)] = 0.5,
    ranks: Literal["policy", "score"] = "policy",
) -> LossOutput:
    """Pay the DPO loss of every pair in the list, weighted by what swapping the two would do to the ranking.

    For several chains of reasoning to one problem, such as the leaves of a tree of thoughts, with a value
    for each. A pair counts by the gap between its values and by how near the top it stands. Gains are powers
    of two, so values should lie within a few units. Not ``triple`` nor test-time PO, also written TPO.

    The paper's adaptive step reward, which weighs each step by how alike its hidden states are to those of
    the best answer's step, is not part of this: it needs the hidden states inside the loss.

    When:
        each row has several answers with scores

    Args:
        policy: G groups of answers under the model being trained.
        reference: the same groups under the reference.
        answer_score: [S] value of every answer.
        beta: reward per nat of log-ratio.
        ranks: what ranks the answers for the weights: the current rewards of the "policy", as in LambdaLoss,
            or the "score" of the data, which keeps the weights constant. Rewards that are equal to one
            decimal are ranked by score, for at the start all differ by rounding alone.

    Returns:
        Loss [G]; rewards [G], beta times the log-ratio: of the best answer, and the mean of the others'; metric
        ``ranking_accuracy`` [G]. The exponent of the gains is clamped to 80 nats.

    Formula:
        h = policy - reference, sums of log-probs, v = answer_score, for each answer; rank 1 is the best
        w_ij = |2^v_i - 2^v_j| * |1 / log(1 + rank_i) - 1 / log(1 + rank_j)|, held constant
        loss = sum over i, j with v_i > v_j of -w_ij * log sigmoid(beta * (h_i - h_j))

    Source:
        Liao, Chu and Wang, "TPO: Aligning Large Language Models with Multi-branch & Multi-step Preference
        Trees", 2024, arXiv 2410.12854, its preference list ranking; the weights are those of LiPO-lambda,
        Liu et al., 2024, arXiv 2402.01878. The authors' code differs and is not followed: its pairs have no
        weights, it puts the whole loss through a second -log sigmoid, which falls as the ranking gets worse,
        and it gathers log-probs without shifting them to the next token.
    """
    grid = Grid(policy)
    rewards = beta * log_ratio(policy.answers, reference.answers)
    table = grid.lay(rewards)
    pair_loss = logistic(table[:, :, None] - table[:, None, :])
    order = grid.best_first(answer_score)
    if ranks == "policy":
        level = grid.lay((10.0 * stop(rewards)).round(), -torch.inf).gather(1, order)
        order = order.gather(1, level.argsort(dim=1, descending=True, stable=True))
    weight = _swap_weight(grid.lay(safe_exp(answer_score * math.log(2.0))), order)
    loss = (pair_loss * weight * grid.is_better(answer_score)).sum(dim=(1, 2))
    return with_list_rewards(loss, grid, rewards, answer_score)


def _swap_weight(gain: Tensor, order: Tensor) -> Tensor:
    """Return by how much the discounted gain of a ranking changes when two answers swap, [G, K, K]."""
    rank = order.argsort(dim=1) + 1
    discount = 1.0 / (1.0 + rank).to(gain.dtype).log()
    gap = (gain[:, :, None] - gain[:, None, :]).abs()
    return gap * (discount[:, :, None] - discount[:, None, :]).abs()
