"""BCO: classify answers as wanted or not, around the running mean of all rewards."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from prefopt.losses._door import checked
from prefopt.losses._step import running_mean, signs
from prefopt.losses._terms import log_ratio, logistic, stop
from prefopt.types import Carried, LabelledLogps, LossOutput, PairLogps, Range, WholeStep


@checked
def bco(
    policy: Annotated[PairLogps, WholeStep()],
    reference: PairLogps,
    *,
    baseline: Annotated[Tensor | None, Carried(shape=())] = None,
    baseline_count: Annotated[Tensor | None, Carried(shape=())] = None,
    beta: Annotated[float, Range(gt=0)] = 0.01,
) -> LossOutput:
    """Pay for classifying the chosen answer as wanted and the rejected one as not, around a moving line.

    The line is the mean of all rewards of the run so far, this step's included, so that what counts is
    to be better than the average answer, not than the reference.

    When:
        the chosen answers lose likelihood too
        one pair at a time says too little

    Args:
        policy: P pairs under the model being trained, all of the optimizer step.
        reference: the same P pairs under the reference.
        baseline: [] mean reward of the earlier steps; carried over by itself.
        baseline_count: int64 [], how many rewards that is the mean of.
        beta: reward per nat of log-ratio.

    Returns:
        Loss [P]; rewards [P], beta times the log-ratio of each answer; the metric ``baseline``.

    Formula:
        r = beta * (policy - reference), sums of log-probs, for each answer
        d = mean of all r of this step and all earlier ones, held constant
        loss = -log sigmoid(r_chosen - d) - log sigmoid(d - r_rejected)

    Source:
        Jung, Han, Nam and On, "Binary Classifier Optimization for Large Language Model Alignment", 2024,
        arXiv 2404.04656. The running mean over all steps is that of TRL's BCO trainer.
    """
    chosen = beta * log_ratio(policy.chosen, reference.chosen)
    rejected = beta * log_ratio(policy.rejected, reference.rejected)
    rewards = stop(torch.stack([chosen, rejected]))
    mean, count = running_mean(rewards.flatten(), baseline, baseline_count)
    return LossOutput(
        loss=logistic(chosen - mean) + logistic(mean - rejected),
        chosen_reward=rewards[0],
        rejected_reward=rewards[1],
        metrics={"baseline": mean.to(chosen.dtype).expand(len(policy))},
        carried={"baseline": mean, "baseline_count": count},
    )


@checked
def bco_unpaired(
    policy: Annotated[LabelledLogps, WholeStep()],
    reference: LabelledLogps,
    *,
    baseline: Annotated[Tensor | None, Carried(shape=())] = None,
    baseline_count: Annotated[Tensor | None, Carried(shape=())] = None,
    beta: Annotated[float, Range(gt=0)] = 0.01,
) -> LossOutput:
    """Pay for classifying each answer as wanted or not, around the running mean of all rewards.

    For answers that are marked good or bad one by one. The paper's weights for prompts that differ
    between the two sides (underlying distribution matching) need a classifier over embeddings of the
    prompts; they are left out.

    When:
        each row has a single answer, labelled as wanted or not

    Args:
        policy: S answers under the model being trained, all of the optimizer step.
        reference: the same S answers under the reference.
        baseline: [] mean reward of the earlier steps; carried over by itself.
        baseline_count: int64 [], how many rewards that is the mean of.
        beta: reward per nat of log-ratio.

    Returns:
        Loss [S]; reward [S], beta times the log-ratio; the metric ``baseline``.

    Formula:
        r = beta * (policy - reference), sums of log-probs
        d = mean of all r of this step and all earlier ones, held constant
        loss = -log sigmoid(r - d) for a desirable answer, -log sigmoid(d - r) for another

    Source:
        Jung, Han, Nam and On, "Binary Classifier Optimization for Large Language Model Alignment", 2024,
        arXiv 2404.04656. The running mean over all steps is that of TRL's BCO trainer.
    """
    reward = beta * log_ratio(policy.answers, reference.answers)
    held = stop(reward)
    mean, count = running_mean(held, baseline, baseline_count)
    return LossOutput(
        loss=logistic(signs(policy) * (reward - mean)),
        chosen_reward=held,
        metrics={"baseline": mean.to(reward.dtype).expand(len(policy))},
        carried={"baseline": mean, "baseline_count": count},
    )
