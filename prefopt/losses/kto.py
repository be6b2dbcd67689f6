"""KTO: answers marked good or bad one by one, weighed against how far the policy has drifted."""

from __future__ import annotations

from typing import Annotated

import torch

from prefopt.losses._door import checked
from prefopt.losses._step import signs
from prefopt.losses._terms import log_ratio, stop
from prefopt.types import LabelledLogps, LossOutput, Range, Roles, WholeStep


@checked
def kto(
    policy: Annotated[LabelledLogps, WholeStep(), Roles("kl")],
    reference: LabelledLogps,
    *,
    beta: Annotated[float, Range(gt=0)] = 0.1,
    desirable_weight: Annotated[float, Range(ge=0)] = 1.0,
    undesirable_weight: Annotated[float, Range(ge=0)] = 1.0,
) -> LossOutput:
    """Pay for the probability that an answer lies on the wrong side of the policy's mean drift.

    For answers that are marked good or bad one by one. The drift is estimated on mismatched answers, each
    under the prompt of another row, and carries no gradient. The cost is bounded, so answers far on either
    side teach little. Where one kind of answer is rare, raise its weight until weight times number is
    about equal on both sides; the paper keeps the ratio of desirable to undesirable within 1 to 4 / 3.

    When:
        each row has a single answer, labelled as wanted or not
        one pair at a time says too little

    Args:
        policy: S answers under the model being trained and the mismatched ones as the role ``kl``, all of
            the optimizer step.
        reference: the same under the reference.
        beta: reward per nat of log-ratio.
        desirable_weight: multiplies the loss of desirable answers.
        undesirable_weight: multiplies the loss of the others.

    Returns:
        Loss [S]; reward [S], beta times the log-ratio; the metric ``kl``, nats.

    Formula:
        h = policy - reference, sums of log-probs
        z = max(0, mean of h over the mismatched answers), held constant
        loss = desirable_weight * (1 - sigmoid(beta * (h - z))) for a desirable answer,
        undesirable_weight * (1 - sigmoid(beta * (z - h))) for another

    Source:
        Ethayarajh, Xu, Muennighoff, Jurafsky and Kiela, "KTO: Model Alignment as Prospect Theoretic
        Optimization", 2024, arXiv 2402.01306, equations 7 and 8.
    """
    drift = log_ratio(policy.others["kl"], reference.others["kl"]).mean().clamp(min=0)
    return _pay(policy, reference, stop(drift), beta, desirable_weight, undesirable_weight)


@checked
def apo_zero_unpaired(
    policy: LabelledLogps,
    reference: LabelledLogps,
    *,
    beta: Annotated[float, Range(gt=0)] = 0.1,
    desirable_weight: Annotated[float, Range(ge=0)] = 1.0,
    undesirable_weight: Annotated[float, Range(ge=0)] = 1.0,
) -> LossOutput:
    """Pay for the probability that an answer lies on the wrong side of the reference.

    KTO with its drift set to zero: good answers are to become likelier than under the reference and bad
    ones less likely. Use it when the good answers are better than what the model writes itself. No
    mismatched answers are scored, and answers do not depend on each other.

    When:
        each row has a single answer, labelled as wanted or not

    Args:
        policy: S answers under the model being trained.
        reference: the same S answers under the reference.
        beta: reward per nat of log-ratio.
        desirable_weight: multiplies the loss of desirable answers.
        undesirable_weight: multiplies the loss of the others.

    Returns:
        Loss [S]; reward [S], beta times the log-ratio.

    Formula:
        h = policy - reference, sums of log-probs
        loss = desirable_weight * (1 - sigmoid(beta * h)) for a desirable answer,
        undesirable_weight * sigmoid(beta * h) for another

    Source:
        D'Oosterlinck et al., "Anchored Preference Optimization and Contrastive Revisions: Addressing
        Underspecification in Alignment", 2024, arXiv 2408.06266, equation 7, its two terms taken apart.
    """
    return _pay(policy, reference, None, beta, desirable_weight, undesirable_weight)


def _pay(
    policy: LabelledLogps,
    reference: LabelledLogps,
    drift: torch.Tensor | None,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
) -> LossOutput:
    ratio = log_ratio(policy.answers, reference.answers)
    sign = signs(policy)
    # of two numbers torch.where makes float32
    weight = torch.where(sign > 0, sign.new_full((), desirable_weight), undesirable_weight)
    gain = ratio if drift is None else ratio - drift
    # sigmoid(-x), not 1 - sigmoid(x): the latter rounds to 0 from x = 17 in float32
    return LossOutput(
        loss=weight * torch.sigmoid(-beta * sign * gain),
        chosen_reward=stop(beta * ratio),
        metrics={} if drift is None else {"kl": drift.expand(len(policy))},
    )
