"""LifeAlign's focalized preference optimization: DPO that attends to the pairs it cannot rank yet."""

from __future__ import annotations

from typing import Annotated

from prefopt.losses._door import checked
from prefopt.losses._terms import log_ratio, logistic, safe_exp, with_rewards
from prefopt.types import LossOutput, PairLogps, Range


@checked
def focal_hard(
    policy: PairLogps,
    reference: PairLogps,
    *,
    beta: Annotated[float, Range(gt=0)] = 0.1,
    gamma: Annotated[float, Range(ge=0)] = 2.0,
) -> LossOutput:
    """Pay the DPO loss times (1 - sigmoid(margin))^gamma, so that well-ranked pairs weigh less.

    For training on one task after another: pairs that are already ranked rightly stop pulling, so what
    was learnt is disturbed less. Made for clean labels, since the pairs it insists on include the
    mislabelled ones. ``focal`` (FocalPO) goes the other way; do not confuse the two. The factor is part
    of the gradient, which keeps DPO's direction at every margin.

    When:
        pairs that are hard but right are given up

    Args:
        policy: P pairs under the model being trained.
        reference: the same P pairs under the reference.
        beta: reward per nat of log-ratio.
        gamma: exponent of the weight; 0 is DPO.

    Returns:
        Loss [P]; rewards [P], beta times the log-ratio of each answer. The log of the weight is clamped
        at -80.

    Formula:
        p = sigmoid(beta * D), with D as in dpo
        loss = -(1 - p)^gamma * log p

    Source:
        Li et al., "LifeAlign: Lifelong Alignment for Large Language Models with Memory-Augmented
        Focalized Preference Optimization", 2025, arXiv 2509.17183; ``fpo_loss`` in the authors' code,
        where gamma is fixed at 2. Their consolidation of LoRA updates between tasks is not part of it.
    """
    chosen = log_ratio(policy.chosen, reference.chosen)
    rejected = log_ratio(policy.rejected, reference.rejected)
    margin = beta * (chosen - rejected)
    # 1 - sigmoid(x) is sigmoid(-x), whose log is -logistic(-x)
    loss = safe_exp(-gamma * logistic(-margin)) * logistic(margin)
    return with_rewards(loss, chosen, rejected, beta)
