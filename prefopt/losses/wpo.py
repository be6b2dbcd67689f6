"""WPO: preference pairs weighted by how likely the policy is to write them itself."""

from __future__ import annotations

from typing import Annotated

from prefopt.losses._door import checked
from prefopt.losses._terms import sampling_weight, scale_loss
from prefopt.losses.dpo import dpo
from prefopt.types import Applies, LossOutput, PairLogps, Range, Stats


@checked
def wpo(
    policy: Annotated[PairLogps, Stats("log_sum_p2"), Applies("weighted")],
    reference: PairLogps,
    *,
    beta: Annotated[float, Range(gt=0)] = 0.01,
    label_smoothing: Annotated[float, Range(ge=0, lt=0.5)] = 0.0,
    max_weight: Annotated[float, Range(gt=0)] = 1.0,
) -> LossOutput:
    """Pay the DPO loss times the likelihood that the policy samples both answers of the pair.

    For pairs written by other models: those that look like the policy's own output count fully, far
    ones hardly, which brings off-policy training nearer to on-policy. This is ``weighted(dpo)``.

    When:
        answers come from other models than the policy

    Args:
        policy: P pairs under the model being trained, with the stat ``log_sum_p2`` per token.
        reference: the same P pairs under the reference.
        beta: reward per nat of log-ratio.
        label_smoothing: probability that a label is flipped.
        max_weight: cap of the weight.

    Returns:
        Loss [P]; rewards [P], beta times the log-ratio; metric ``weight`` [P], detached. The log of the
        weight is clamped to [-80, 80].

    Formula:
        A = mean over tokens of (log p(token) - log sum_v p(v)^2), for each answer
        loss = min(max_weight, exp(A_chosen + A_rejected)) * dpo

    Source:
        Zhou, Agrawal, Zhang, Indurthi, Zhao, Song, Xu and Zhu, "WPO: Enhancing RLHF with Weighted
        Preference Optimization", 2024, arXiv 2406.11827, sampled alignment; the cap of 1 and the
        detached weight are those of the authors' code.
    """
    output = dpo(policy, reference, beta=beta, label_smoothing=label_smoothing)
    return scale_loss(output, sampling_weight(policy, max_weight))
