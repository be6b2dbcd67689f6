"""Reverse PO: DPO with a margin that grows with the number of constraints the answers differ on."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from prefopt.losses._door import checked
from prefopt.losses._terms import log_ratio, logistic, with_rewards
from prefopt.types import LossOutput, PairLogps, Range


@checked
def reverse(
    policy: PairLogps,
    reference: PairLogps,
    *,
    pair_margin: Tensor,
    beta: Annotated[float, Range(gt=0)] = 0.1,
    gamma: Annotated[float, Range(ge=0)] = 0.1,
) -> LossOutput:
    """Pay the DPO loss on the margin beyond gamma times the margin that the data gives each pair.

    For instructions with several constraints. The data do the rest of the method: constraints that the
    chosen answer misses are turned round in the prompt, so that it meets all of them, and the row's
    margin is the number of constraints on which the two answers then differ. Both answers are scored
    under that edited prompt. Serves for any other margin column too. Not ``reward_aware`` (reward-aware
    PO) nor ``relative`` (relative PO), also written RPO.

    When:
        each row has a margin by which the chosen answer is better

    Args:
        policy: P pairs under the model being trained.
        reference: the same P pairs under the reference.
        pair_margin: [P] number of constraints the answers differ on; 0 where the data has none.
        beta: reward per nat of log-ratio.
        gamma: reward per constraint; 0 is DPO.

    Returns:
        Loss [P]; rewards [P], beta times the log-ratio of each answer.

    Formula:
        D as in dpo
        loss = -log sigmoid(beta * D - gamma * pair_margin)

    Source:
        Huang, Lin, Fang, Wu, Li, Qu, Huang and Li, "Reverse Preference Optimization for Complex
        Instruction Following", 2025, arXiv 2505.22172. The default of gamma is ours.
    """
    chosen = log_ratio(policy.chosen, reference.chosen)
    rejected = log_ratio(policy.rejected, reference.rejected)
    loss = logistic(beta * (chosen - rejected) - gamma * pair_margin)
    return with_rewards(loss, chosen, rejected, beta)
