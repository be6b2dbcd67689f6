"""SPPO on lists: every sample's log-ratio is regressed on its own win probability."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from prefopt.losses._door import checked
from prefopt.losses._lists import Grid, with_list_rewards
from prefopt.losses._terms import log_ratio, squared
from prefopt.types import ListLogps, LossOutput, Range, Scale


@checked
def sppo_k(
    policy: Annotated[ListLogps, Scale("probability")],
    reference: ListLogps,
    *,
    answer_score: Tensor,
    beta: Annotated[float, Range(gt=0)] = 1e-3,
) -> LossOutput:
    """Pay the mean squared distance of the answers' log-ratios from their centred win probabilities over beta.

    The objective of SPPO with all samples of a prompt, of which ``sppo`` takes the best and the worst: on
    groups of two the two agree. The scores must be probabilities of beating the policy's own samples.

    When:
        each row has several answers with scores

    Args:
        policy: G groups of answers under the model being trained.
        reference: the same groups under the policy that wrote them.
        answer_score: [S] probability that each answer beats the policy's own samples.
        beta: inverse of the paper's step size eta.

    Returns:
        Loss [G]; rewards [G], beta times the log-ratio: of the best answer, and the mean of the others'; metric
        ``ranking_accuracy`` [G].

    Formula:
        h = policy - reference, sums of log-probs, for each answer
        loss = mean over k of (h_k - (answer_score_k - 0.5) / beta)^2

    Source:
        Wu, Sun, Yuan, Ji, Yang and Gu, "Self-Play Preference Optimization for Language Model Alignment",
        2024, arXiv 2405.00675, its objective over all samples of a prompt; scaled so that two answers give
        the authors' ``sppo``.
    """
    grid = Grid(policy)
    ratio = log_ratio(policy.answers, reference.answers)
    missed = squared(ratio, target=(answer_score - 0.5) / beta)
    loss = grid.lay(missed).sum(dim=1) / grid.count(missed.dtype)
    return with_list_rewards(loss, grid, beta * ratio, answer_score)
