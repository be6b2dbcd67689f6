"""RSO's hinge: DPO as a support vector machine."""

from __future__ import annotations

from typing import Annotated

from prefopt.losses._door import checked
from prefopt.losses._terms import log_ratio, shortfall, with_rewards
from prefopt.types import LossOutput, PairLogps, Range


@checked
def hinge(
    policy: PairLogps, reference: PairLogps, *, beta: Annotated[float, Range(gt=0)] = 0.05
) -> LossOutput:
    """Pay what the reward margin falls short of one.

    For pairs that should be separated and then left alone: a pair beyond the margin has no gradient at
    all, where DPO's only fades, so the policy stays nearer to the reference on what it has learnt. All
    other pairs pull alike, the hopeless as much as the close ones.

    When:
        the margin grows without end on clear pairs

    Args:
        policy: P pairs under the model being trained.
        reference: the same P pairs under the reference.
        beta: reward per nat of log-ratio; the margin asked for is 1 / beta nats.

    Returns:
        Loss [P]; rewards [P], beta times the log-ratio of each answer.

    Formula:
        loss = max(0, 1 - beta * D), with D as in dpo

    Source:
        Liu, Zhao, Joshi, Khalman, Saleh, Liu and Liu, "Statistical Rejection Sampling Improves Preference
        Optimization", 2023, arXiv 2309.06657, hinge-norm; the same as TRL's ``hinge``. Its ancestor
        without a reference is ``slic``.
    """
    chosen = log_ratio(policy.chosen, reference.chosen)
    rejected = log_ratio(policy.rejected, reference.rejected)
    loss = shortfall(beta * (chosen - rejected))
    return with_rewards(loss, chosen, rejected, beta)
