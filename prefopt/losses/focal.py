"""FocalPO: DPO that attends to the pairs it can already rank."""

from __future__ import annotations

from typing import Annotated

from prefopt.losses._door import checked
from prefopt.losses._terms import log_ratio, logistic, safe_exp, stop, with_rewards
from prefopt.types import LossOutput, PairLogps, Range


@checked
def focal(
    policy: PairLogps,
    reference: PairLogps,
    *,
    beta: Annotated[float, Range(gt=0)] = 0.1,
    gamma: Annotated[float, Range(ge=0)] = 0.05,
    detach_weight: bool = False,
) -> LossOutput:
    """Pay the DPO loss times sigmoid(margin)^gamma, so that mis-ranked pairs weigh less.

    DPO spends its gradient on pairs it ranks wrongly and seldom turns them; this keeps the gradient on
    the others. (``focal_hard`` goes the other way; do not confuse the two.) The factor is part of the
    gradient unless ``detach_weight``. Undetached, the gradient turns round where sigmoid(margin) <
    exp(-1 / gamma): never in practice at 0.05, but at the very start of training for gamma > 1.44.
    Set ``detach_weight`` to go that high.

    When:
        wrong labels pull hardest

    Args:
        policy: P pairs under the model being trained.
        reference: the same P pairs under the reference.
        beta: reward per nat of log-ratio.
        gamma: exponent of the weight; 0 is DPO.
        detach_weight: hold the weight constant in the gradient.

    Returns:
        Loss [P]; rewards [P], beta times the log-ratio of each answer. The log of the weight is clamped
        at -80, so a hopelessly mis-ranked pair weighs exp(-80).

    Formula:
        p = sigmoid(beta * D), with D as in dpo
        loss = -p^gamma * log p

    Source:
        Liu, Yu, Zhou, Gu and Tresp, "FocalPO: Enhancing Preference Optimizing by Focusing on Correct
        Preference Rankings", 2025, arXiv 2501.06645. ``detach_weight`` is ours.
    """
    chosen = log_ratio(policy.chosen, reference.chosen)
    rejected = log_ratio(policy.rejected, reference.rejected)
    cost = logistic(beta * (chosen - rejected))
    weight = safe_exp(-gamma * cost)
    loss = (stop(weight) if detach_weight else weight) * cost
    return with_rewards(loss, chosen, rejected, beta)
