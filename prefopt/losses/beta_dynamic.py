"""beta-DPO: a beta for each step, and outlying pairs left out."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated

import torch
from torch import Tensor

from prefopt.losses._door import checked
from prefopt.losses._step import gumbel, moving_moments, z_scores
from prefopt.losses._terms import log_ratio, logistic, stop, with_rewards
from prefopt.types import Carried, LossOutput, PairLogps, Range, WholeStep

MIN_BETA = 1e-3
"""Least beta that a step is given."""


@checked
def beta_dynamic(
    policy: Annotated[PairLogps, WholeStep()],
    reference: PairLogps,
    *,
    pair_seed: Tensor,
    gap_mean: Annotated[Tensor | None, Carried(shape=())] = None,
    gap_std: Annotated[Tensor | None, Carried(shape=())] = None,
    beta: Annotated[float, Range(ge=MIN_BETA)] = 0.1,
    alpha: Annotated[float, Range(ge=0)] = 0.6,
    rho: Annotated[float, Range(ge=0, lt=1)] = 0.2,
    momentum: Annotated[float, Range(ge=0, lt=1)] = 0.9,
) -> LossOutput:
    """Pay DPO's loss with a beta that follows the step's margins, for a sample without its outliers.

    A step whose pairs are told apart better than usual is held closer to the reference, one with hard
    pairs less. A share ``rho`` of the pairs is left out by chance, the likelier the further their margin
    lies from the moving average.

    When:
        wrong labels pull hardest
        one pair at a time says too little

    Args:
        policy: P pairs under the model being trained, all of the optimizer step.
        reference: the same P pairs under the reference.
        pair_seed: int64 [P] decides what is left out, the same however the step is split.
        gap_mean: [] moving average of the margins' mean; carried over by itself.
        gap_std: [] moving average of their standard deviation.
        beta: reward per nat of log-ratio in a step of average margins.
        alpha: how much beta follows the margins; 0 keeps it.
        rho: share of the pairs that is left out.
        momentum: what a step leaves of the moving averages.

    Returns:
        Loss [P], zero for pairs left out and the rest scaled up, so that the mean over all pairs is that
        over the kept; rewards [P], ``beta`` times the log-ratio of each answer; the metrics ``beta``, the
        step's own, and ``kept``.

    Formula:
        D = (chosen - reference chosen) - (rejected - reference rejected), sums of log-probs
        m, s = moving averages of the mean and the standard deviation of D, this step included
        kept: (1 - rho) P of the pairs, drawn without replacement with weight exp(-((D - m) / s)^2 / 2)
        b = max(0.001, beta * (1 + alpha * (mean of D over kept - m))), held constant
        loss = -log sigmoid(b * D) * P / number kept, for kept pairs

    Source:
        Wu, Xie, Yang, Wu, Gao, Ding, Wang and He, "beta-DPO: Direct Preference Optimization with Dynamic
        beta", 2024, arXiv 2407.08639, as in the authors' code. There the averages start at zero; here they
        start with the first step whose margins differ.
    """
    chosen = log_ratio(policy.chosen, reference.chosen)
    rejected = log_ratio(policy.rejected, reference.rejected)
    gap = stop(chosen - rejected)
    mean, std = moving_moments(gap, gap_mean, gap_std, momentum)
    keys = gumbel(pair_seed.to(gap.device), gap.dtype) - 0.5 * z_scores(gap, mean, std).square()
    # the small number makes up for the rounding of 1 - rho
    num_kept = max(1, math.floor(len(gap) * (1 - rho) + 1e-9))
    kept = torch.zeros_like(gap).index_fill_(0, keys.topk(num_kept).indices, 1.0)
    step_beta = (beta * (1 + alpha * ((gap * kept).sum() / num_kept - mean))).clamp(min=MIN_BETA)
    loss = kept * logistic(step_beta * (chosen - rejected)) * (len(gap) / num_kept)
    output = with_rewards(loss, chosen, rejected, beta)
    return replace(
        output,
        metrics={"beta": step_beta.to(gap.dtype).expand(len(gap)), "kept": kept},
        carried={"gap_mean": mean, "gap_std": std},
    )
