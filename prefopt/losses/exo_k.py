"""EXO on lists: the reverse KL from the policy's choice among K answers to the one that ranks or scores prefer."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from torch import Tensor

from prefopt.losses._door import checked
from prefopt.losses._lists import Grid, with_list_rewards
from prefopt.losses._terms import log_ratio
from prefopt.types import ListLogps, LossOutput, OnlyWith, Range


@checked
def exo_k(
    policy: ListLogps,
    reference: ListLogps,
    *,
    answer_score: Tensor,
    beta: Annotated[float, Range(gt=0)] = 0.1,
    target: Literal["reward", "preference"] = "reward",
    beta_r: Annotated[float, Range(gt=0), OnlyWith("target", "reward")] = 0.1,
    label_smoothing: Annotated[float, Range(gt=0, lt=0.5), OnlyWith("target", "preference")] = 1e-3,
) -> LossOutput:
    """Pay the reverse KL from the policy's choice within the group to that of the scores.

    Seeks the mode of what the data prefers, as RL against a reward does, where ``infonca_k`` (the forward KL)
    spreads over it. An answer that the policy has all but given up hardly counts, so start from a policy that
    can rank. On groups of two, "reward" is ``exo_rw`` and "preference" is ``exo_pref``.

    When:
        each row has several answers with scores

    Args:
        policy: G groups of answers under the model being trained.
        reference: the same groups under the reference.
        answer_score: [S] score of every answer.
        beta: reward per nat of log-ratio.
        target: "reward" takes the softmax of the scores; "preference" gives the best answer
            1 - label_smoothing and shares the rest among the others. Of equally good ones the first is best.
        beta_r: temperature of the scores, for "reward".
        label_smoothing: what the others share, for "preference".

    Returns:
        Loss [G]; rewards [G], beta times the log-ratio: of the best answer, and the mean of the others'; metric
        ``ranking_accuracy`` [G].

    Formula:
        h = policy - reference, sums of log-probs, for each answer
        p = softmax over the group of beta * h
        q = softmax over the group of answer_score / beta_r      (reward)
        q = 1 - e for the best, e / (K - 1) for any other        (preference), e = label_smoothing
        loss = sum over k of p_k * (log p_k - log q_k)

    Source:
        Ji, Lu, Niu, Ke, Wang, Zhu, Tang and Huang, "Towards Efficient Exact Optimization of Language Model
        Alignment", 2024, arXiv 2402.00856, EXO-rw with K answers, as in the authors' code. Their code has
        "preference" for two answers alone, with log-probabilities 0 and -10 that are not normalised.
    """
    grid = Grid(policy)
    rewards = beta * log_ratio(policy.answers, reference.answers)
    log_p = grid.log_softmax(rewards)
    if target == "reward":
        log_q = grid.log_softmax(answer_score / beta_r)
    else:
        log_q = _smoothed_best(grid, answer_score, label_smoothing)
    loss = (log_p.exp() * grid.mask * (log_p - log_q)).sum(dim=1)
    return with_list_rewards(loss, grid, rewards, answer_score)


def _smoothed_best(grid: Grid, scores: Tensor, smoothing: float) -> Tensor:
    """Return the log-probability of each answer where the best has 1 - smoothing, [G, K]."""
    others = (grid.count(scores.dtype) - 1).clamp(min=1).log()
    shared = (math.log(smoothing) - others)[:, None].expand(grid.mask.shape)
    best = grid.best_first(scores)[:, :1]
    return shared.scatter(1, best, torch.full_like(shared[:, :1], math.log1p(-smoothing)))
