"""alpha-DPO: SimPO with a target margin for each pair, taken from how far the policy has moved on it."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from torch import Tensor

from prefopt.losses._door import checked
from prefopt.losses._step import moving_moments, z_scores
from prefopt.losses._terms import Norm, log_ratio, logistic, stop, with_rewards
from prefopt.types import Carried, LossOutput, OnlyWith, PairLogps, Range, Reads, SeqLogps, WholeStep


@checked
def alpha_margin(
    policy: Annotated[PairLogps, Reads("length", only_with=OnlyWith("norm", "mean")), WholeStep()],
    reference: PairLogps,
    *,
    margin_mean: Annotated[Tensor | None, Carried(shape=())] = None,
    margin_std: Annotated[Tensor | None, Carried(shape=())] = None,
    beta: Annotated[float, Range(gt=0)] = 2.5,
    gamma: Annotated[float, Range(ge=0)] = 1.5,
    alpha: Annotated[float, Range(ge=0)] = 0.2,
    momentum: Annotated[float, Range(ge=0, lt=1)] = 0.9,
    norm: Norm = "mean",
) -> LossOutput:
    """Pay -log sigmoid of the policy's own margin beyond a target that differs from pair to pair.

    The margin is that of SimPO and knows no reference; the reference only sets the target. A pair that
    the policy tells apart better than the reference does, by the measure of the run, is asked for more.

    ``gamma`` is in units of reward, as for ``simpo``; the authors' gamma_beta_ratio is gamma / beta.

    When:
        one pair at a time says too little

    Args:
        policy: P pairs under the model being trained, all of the optimizer step.
        reference: the same P pairs under the reference.
        margin_mean: [] moving average of the mean of D; carried over by itself.
        margin_std: [] moving average of its standard deviation.
        beta: reward per nat, per token with ``norm`` "mean".
        gamma: target margin of an average pair.
        alpha: how much the target follows D, in standard deviations; 0 is SimPO.
        momentum: what a step leaves of the moving averages.
        norm: "mean" divides log-probs by the answer's length, "sum" does not.

    Returns:
        Loss [P]; rewards [P], beta times the log-prob of each answer; the metric ``target``, the margin of
        rewards at which a pair costs log 2.

    Formula:
        a = log-prob / length, for each answer
        D = (a_chosen - a_rejected) of the policy - the same of the reference
        z = (D - m) / s, with the moving averages of mean and standard deviation, this step included
        loss = -log sigmoid(beta * (a_chosen - a_rejected) - (gamma + beta * alpha * z)), z held constant

    Source:
        Wu, Wang, Yang, Wu, Gao, Ding, Wang and He, "AlphaDPO: Adaptive Reward Margin for Direct Preference
        Optimization", 2024, arXiv 2410.10148, as in the authors' code. There the averages start at zero;
        here they start with the first step whose D differ.
    """
    gap = stop(
        log_ratio(policy.chosen, reference.chosen, norm)
        - log_ratio(policy.rejected, reference.rejected, norm)
    )
    mean, std = moving_moments(gap, margin_mean, margin_std, momentum)
    target = gamma + beta * alpha * z_scores(gap, mean, std)
    chosen, rejected = _own(policy.chosen, norm), _own(policy.rejected, norm)
    output = with_rewards(logistic(beta * (chosen - rejected) - target), chosen, rejected, beta)
    return replace(
        output,
        metrics={"target": target.to(gap.dtype)},
        carried={"margin_mean": mean, "margin_std": std},
    )


def _own(answers: SeqLogps, norm: Norm) -> Tensor:
    # total over length, not `mean`: the two agree until a transform replaces `total`
    return answers.total / answers.length if norm == "mean" else answers.total
