"""Robust DPO: unbiased where labels are flipped at a known rate."""

from __future__ import annotations

from typing import Annotated

from prefopt.losses._door import checked
from prefopt.losses._terms import log_ratio, logistic, with_rewards
from prefopt.types import LossOutput, PairLogps, Range


@checked
def robust(
    policy: PairLogps,
    reference: PairLogps,
    *,
    beta: Annotated[float, Range(gt=0)] = 0.1,
    label_smoothing: Annotated[float, Range(ge=0, lt=0.5)] = 0.1,
) -> LossOutput:
    """Pay the DPO loss, corrected so that labels flipped at random leave its expectation as it is.

    For noisy labels whose flip rate is known or can be estimated. Conservative DPO (``dpo`` with
    ``label_smoothing``) stops at a finite margin; this one never does: the correction falls linearly
    in the margin, so the loss may be negative and has no lower bound. Watch the margins, stop early,
    and estimate the rate low rather than high.

    When:
        each row has a label, a known share of which is flipped
        wrong labels pull hardest

    Args:
        policy: P pairs under the model being trained.
        reference: the same P pairs under the reference.
        beta: reward per nat of log-ratio.
        label_smoothing: probability that a label is flipped; 0 is DPO.

    Returns:
        Loss [P]; rewards [P], beta times the log-ratio of each answer.

    Formula:
        m = beta * D, with D as in dpo; e = label_smoothing
        loss = (-(1 - e) * log sigmoid(m) + e * log sigmoid(-m)) / (1 - 2 * e)
             = -log sigmoid(m) - e / (1 - 2 * e) * m

    Source:
        Chowdhury, Kini and Natarajan, "Provably Robust DPO: Aligning Language Models with Noisy
        Feedback", 2024, arXiv 2403.00409; the same as TRL's ``robust``.
    """
    chosen = log_ratio(policy.chosen, reference.chosen)
    rejected = log_ratio(policy.rejected, reference.rejected)
    margin = beta * (chosen - rejected)
    # log sigmoid(-m) = log sigmoid(m) - m turns the first form into the second, which cancels nothing
    loss = logistic(margin) - label_smoothing / (1.0 - 2.0 * label_smoothing) * margin
    return with_rewards(loss, chosen, rejected, beta)
