"""PRO: preference ranking optimization, a ranking of answers with temperatures from the score gaps."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch
from torch import Tensor

from prefopt.losses._door import checked
from prefopt.losses._lists import Grid, with_list_rewards
from prefopt.losses._terms import Norm, stop
from prefopt.types import ListLogps, LossOutput, Range, Reads


@checked
def pro_rank(
    policy: Annotated[ListLogps, Reads("length")],
    *,
    answer_score: Tensor,
    alpha: Annotated[float, Range(ge=0)] = 0.05,
    norm: Norm = "sum",
) -> LossOutput:
    """Pay for each answer that is not told from all worse ones, by as much as its score is higher.

    For answers of several sources to one prompt, scored by a reward model; without a reference. The gaps
    between scores sharpen each comparison, so their scale matters: the authors map scores to [0, 1]. The
    likelihood of the best answer is held up by a term that grows with the square of the list. Not the
    preference orchestrator, also written PRO.

    When:
        each row has several answers with scores

    Args:
        policy: G groups of answers under the model being trained.
        answer_score: [S] score of every answer.
        alpha: weight of the best answer's NLL, before it is multiplied by (K - 1)^2.
        norm: of that NLL: "sum" over the answer's tokens, as the authors' code has it, or their "mean".

    Returns:
        Loss [G]; rewards [G], the mean log-prob per token: of the best answer, and the mean of the others';
        metrics ``ranking_accuracy`` and ``nll`` [G].

    Formula:
        s = log-prob / length, r = answer_score, for each answer; answers in order of falling score
        T_kj = r_k - r_j for j > k, T_kk = r_k - r_K
        loss = sum over k < K of -log(exp(s_k T_kk) / (exp(s_k T_kk) + sum over j > k of exp(s_j T_kj)))
               + alpha * (K - 1)^2 * nll of the best answer

    Source:
        Song, Yu, Li, Yu, Huang, Li and Wang, "Preference Ranking Optimization for Human Alignment", 2023,
        arXiv 2306.17492, as in the authors' code. The paper divides by temperatures 1 / (r_k - r_j), which
        is the same.
    """
    grid = Grid(policy)
    order = grid.best_first(answer_score)
    is_there = grid.mask.gather(1, order)
    mean = policy.answers.total / policy.answers.length
    ranked, score = grid.lay(mean).gather(1, order), grid.lay(answer_score).gather(1, order)
    loss = torch.where(is_there, _told_from_worse(ranked, score, is_there), 0.0).sum(dim=1)
    nll = grid.lay(-policy.answers.total if norm == "sum" else -mean).gather(1, order[:, :1])[:, 0]
    worse = grid.count(nll.dtype) - 1
    output = with_list_rewards(loss + alpha * worse.square() * nll, grid, mean, answer_score)
    return replace(output, metrics={**output.metrics, "nll": stop(nll)})


def _told_from_worse(ranked: Tensor, score: Tensor, is_there: Tensor) -> Tensor:
    """Return -log of the share of each answer among itself and the worse ones, [G, K]; the last pays nothing."""
    gap = score[:, :, None] - score[:, None, :]
    worst = torch.where(is_there, score, torch.inf).amin(dim=1, keepdim=True)
    size = ranked.shape[1]
    own = torch.eye(size, dtype=torch.bool, device=ranked.device)
    temperature = torch.where(own, (score - worst)[:, :, None], gap)
    behind = torch.ones_like(own).triu(1) & is_there[:, None, :]
    scaled = ranked[:, None, :] * temperature
    # a hole sees itself, so that no row is empty: its gradient would be NaN
    share = torch.where(behind | own, scaled, -torch.inf).logsumexp(dim=2)
    return share - scaled.diagonal(dim1=1, dim2=2)
