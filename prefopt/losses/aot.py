"""AOT: align whole distributions of margins or rewards, quantile by quantile."""

from __future__ import annotations

from typing import Annotated

import torch

from prefopt.losses._door import checked
from prefopt.losses._step import matched_quantiles, ranks, signs
from prefopt.losses._terms import log_ratio, logistic, stop, with_rewards
from prefopt.types import LabelledLogps, LossOutput, PairLogps, Range, WholeStep


@checked
def aot(
    policy: Annotated[PairLogps, WholeStep()],
    reference: PairLogps,
    *,
    beta: Annotated[float, Range(gt=0)] = 0.01,
    label_smoothing: Annotated[float, Range(ge=0, lt=0.5)] = 0.0,
) -> LossOutput:
    """Pay for quantiles of the policy's margins that do not lie beyond those of the reference.

    Asks the distribution of margins over the step to dominate the reference's: the smallest margin of
    the policy is compared with the smallest of the reference, whichever pairs they come from, and so on
    up. With one pair in a step it is DPO, so it wants large steps. Each pair pays for its own quantile of
    the policy's margins; a row's weight multiplies that, and the quantiles count every pair once.

    When:
        one pair at a time says too little

    Args:
        policy: P pairs under the model being trained, all of the optimizer step.
        reference: the same P pairs under the reference.
        beta: reward per nat of log-ratio.
        label_smoothing: probability that a label is flipped.

    Returns:
        Loss [P]; rewards [P], beta times the log-ratio of each answer.

    Formula:
        u = chosen - rejected of the policy, v = the same of the reference, sums of log-probs
        D_i = u_i - v_(r), where u_i is the r-th smallest u and v_(r) the r-th smallest v
        loss = -(1 - label_smoothing) * log sigmoid(beta * D) - label_smoothing * log sigmoid(-beta * D)

    Source:
        Melnyk, Mroueh, Belgodere, Rigotti, Nitsure, Yurochkin, Greenewald, Navratil and Ross,
        "Distributional Preference Alignment of LLMs via Optimal Transport", 2024, arXiv 2406.05882, the
        paired form with hard sorting and the logistic cost.
    """
    margins = policy.chosen.total - policy.rejected.total
    others = reference.chosen.total - reference.rejected.total
    loss = logistic(beta * (margins - others.sort().values[ranks(margins)]), label_smoothing)
    chosen = log_ratio(policy.chosen, reference.chosen)
    rejected = log_ratio(policy.rejected, reference.rejected)
    return with_rewards(loss, chosen, rejected, beta)


@checked
def aot_unpaired(
    policy: Annotated[LabelledLogps, WholeStep()],
    reference: LabelledLogps,
    *,
    beta: Annotated[float, Range(gt=0)] = 0.01,
    label_smoothing: Annotated[float, Range(ge=0, lt=0.5)] = 0.0,
) -> LossOutput:
    """Pay for quantiles of the desirable answers' rewards that do not lie beyond those of the undesirable.

    For answers that are marked good or bad one by one. Every answer pays for the distance to the other
    side's value at its own quantile; with as many answers on one side as on the other this is the sorted
    matching of the paper. Where the counts differ the other side is interpolated between its values. A
    step in which one side is missing has nothing to compare and costs nothing.

    When:
        each row has a single answer, labelled as wanted or not

    Args:
        policy: S answers under the model being trained, all of the optimizer step.
        reference: the same S answers under the reference.
        beta: reward per nat of log-ratio.
        label_smoothing: probability that a label is flipped.

    Returns:
        Loss [S]; reward [S], beta times the log-ratio.

    Formula:
        h = policy - reference, sums of log-probs
        q = h of the other side at the quantile (i + 1/2) / n of the answer, the i-th (from 0) of n on its own
        D = h - q for a desirable answer, q - h for another
        loss = -(1 - label_smoothing) * log sigmoid(beta * D) - label_smoothing * log sigmoid(-beta * D)

    Source:
        Melnyk et al., "Distributional Preference Alignment of LLMs via Optimal Transport", 2024,
        arXiv 2406.05882, the unpaired form with hard sorting and the logistic cost. Unequal counts are ours.
    """
    ratio = log_ratio(policy.answers, reference.answers)
    reward = stop(beta * ratio)
    partner = matched_quantiles(ratio, policy.is_desirable)
    loss = logistic(beta * signs(policy) * (ratio - partner), label_smoothing)
    has_both = policy.is_desirable.any() & (~policy.is_desirable).any()
    return LossOutput(loss=torch.where(has_both, loss, 0.0), chosen_reward=reward)
