"""Length-normalised DPO, the preference stage of Tulu 3."""

from __future__ import annotations

from typing import Annotated

from prefopt.losses._door import checked
from prefopt.losses._terms import log_ratio, logistic, with_rewards
from prefopt.types import LossOutput, PairLogps, Range, Reads


@checked
def dpo_norm(
    policy: Annotated[PairLogps, Reads("length")],
    reference: PairLogps,
    *,
    beta: Annotated[float, Range(gt=0)] = 5.0,
    label_smoothing: Annotated[float, Range(ge=0, lt=0.5)] = 0.0,
) -> LossOutput:
    """Pay the DPO loss on log-ratios averaged over tokens instead of summed.

    DPO where answers differ much in length: every answer weighs alike, so the longer one no longer
    dominates the margin. Margins are per token and small, hence a beta some 50 times DPO's. ``simpo``
    does the same without a reference.

    When:
        answers grow longer and longer

    Args:
        policy: P pairs under the model being trained.
        reference: the same P pairs under the reference.
        beta: reward per nat per token of log-ratio.
        label_smoothing: probability that a label is flipped.

    Returns:
        Loss [P]; rewards [P], beta times the mean log-ratio of each answer.

    Formula:
        h = (policy - reference) / length, for each answer
        loss = dpo with D = h_chosen - h_rejected

    Source:
        Lambert et al., "Tulu 3: Pushing Frontiers in Open Language Model Post-Training", 2024,
        arXiv 2411.15124, section 5; ``dpo_norm`` in its authors' open-instruct, ``sigmoid_norm`` in TRL.
    """
    chosen = log_ratio(policy.chosen, reference.chosen, "mean")
    rejected = log_ratio(policy.rejected, reference.rejected, "mean")
    loss = logistic(beta * (chosen - rejected), label_smoothing)
    return with_rewards(loss, chosen, rejected, beta)
