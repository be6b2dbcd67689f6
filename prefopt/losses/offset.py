"""ODPO: DPO with an offset that grows with the gap between the answers' scores."""

from __future__ import annotations

from typing import Annotated, Literal

from torch import Tensor

from prefopt.losses._door import checked
from prefopt.losses._terms import log_ratio, logistic, with_rewards
from prefopt.types import LossOutput, PairLogps, Range

SMALLEST_GAP = 1e-6
"""A smaller gap of scores counts as this one, so that its log is finite."""


@checked
def offset(
    policy: PairLogps,
    reference: PairLogps,
    *,
    chosen_score: Tensor,
    rejected_score: Tensor,
    beta: Annotated[float, Range(gt=0)] = 0.1,
    alpha: Annotated[float, Range(ge=0)] = 1.0,
    scale: Literal["log", "identity"] = "log",
) -> LossOutput:
    """Pay the DPO loss on the margin beyond an offset that the gap of the data's scores sets.

    For pairs scored by a reward model or a judge: a pair that is much better has to win by more. Unlike
    ``reward_aware`` the margin has no upper end. With "log" a gap of 1 asks for nothing, a smaller one
    for less than nothing, so that pairs too close to call hardly pull. ``reverse`` is the same with a
    count from the data in place of scores.

    When:
        each row has a score of each answer

    Args:
        policy: P pairs under the model being trained.
        reference: the same P pairs under the reference.
        chosen_score: [P] score of each chosen answer.
        rejected_score: [P] score of each rejected answer.
        beta: reward per nat of log-ratio.
        alpha: reward per unit of scaled gap; 0 is DPO.
        scale: "log" takes the log of the gap, "identity" the gap itself.

    Returns:
        Loss [P]; rewards [P], beta times the log-ratio of each answer. For "log" a gap below 1e-6 (equal
        scores, or scores that disagree with the label) is clamped there: the pair then costs next to
        nothing.

    Formula:
        D as in dpo, gap = chosen_score - rejected_score, f = scale
        loss = -log sigmoid(beta * D - alpha * f(gap))

    Source:
        Amini, Vieira and Cotterell, "Direct Preference Optimization with an Offset", 2024,
        arXiv 2402.10571; formula and alpha as in the authors' code, where a gap of 0 costs nothing and a
        negative one makes the loss NaN.
    """
    chosen = log_ratio(policy.chosen, reference.chosen)
    rejected = log_ratio(policy.rejected, reference.rejected)
    gap = chosen_score - rejected_score
    wanted = gap.clamp(min=SMALLEST_GAP).log() if scale == "log" else gap
    loss = logistic(beta * (chosen - rejected) - alpha * wanted)
    return with_rewards(loss, chosen, rejected, beta)
