"""PMPO: likelihood up on wanted answers, down on unwanted ones, held to the reference token by token."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from prefopt.losses._door import checked
from prefopt.losses._terms import log_ratio, stop
from prefopt.types import LabelledLogps, LossOutput, Range, Stats


@checked
def pmpo(
    policy: Annotated[LabelledLogps, Stats("kl")],
    reference: LabelledLogps,
    *,
    desirable_share: Tensor,
    alpha: Annotated[float, Range(ge=0, le=1)] = 0.5,
    beta: Annotated[float, Range(ge=0)] = 0.5,
) -> LossOutput:
    """Pay -log-prob of desirable answers and +log-prob of undesirable ones, plus the divergence from the reference.

    For answers that are labelled, not compared, of either kind or both: nothing here needs a pair. With
    ``alpha`` 1 it is likelihood on the good answers alone; with 0 it learns from bad answers alone,
    which only a large enough ``beta`` keeps from running away, for the log-prob of a bad answer has no
    lower end. Sums over tokens are large numbers, so start with a low learning rate. Meant for answers that
    the reference wrote itself; refresh it when the policy has moved.

    When:
        each row has a single answer, labelled as wanted or not

    Args:
        policy: S labelled answers under the model being trained, with the stat ``kl`` per token.
        reference: the same answers under the reference; of them only the rewards are made.
        desirable_share: [] share of desirable answers in the optimizer step, so that each kind is averaged by
            itself, however many there are of the other.
        alpha: weight of the desirable answers; the undesirable ones have 1 - alpha.
        beta: weight of the divergence, per nat.

    Returns:
        Loss [S], which has no lower bound; rewards [S], beta times the log-ratio; metric ``kl`` [S], nats.

    Formula:
        K = sum over the answer's tokens of KL(reference || policy), the whole vocabulary at each
        loss = -alpha / share * log-prob + beta * K             (desirable)
        loss = (1 - alpha) / (1 - share) * log-prob + beta * K  (undesirable)
        so that the mean over the step is
        -alpha * mean(log-prob, desirable) + (1 - alpha) * mean(log-prob, undesirable) + beta * mean(K)

    Source:
        Abdolmaleki, Piot, Shahriari, Springenberg, Hertweck, Joshi, Oh, Bloesch, Lampe, Heess, Buchli and
        Riedmiller, "Preference Optimization as Probabilistic Inference", 2024, arXiv 2410.04166, equation 10.
        The divergence is summed over the positions of the given answers, not of fresh samples; alpha and beta are
        those of a public implementation, not checked against the paper.
    """
    answers = policy.answers
    kl = answers.sum(answers.stats["kl"])
    # a step without a kind of answer has a share of 0 or 1, and its weight is not used
    pulls = -alpha / desirable_share.clamp(min=1e-6)
    pushes = (1.0 - alpha) / (1.0 - desirable_share).clamp(min=1e-6)
    total = answers.total
    weight = torch.where(policy.is_desirable, pulls, pushes).to(total.dtype)
    return LossOutput(
        loss=weight * total + beta * kl,
        chosen_reward=stop(beta * log_ratio(answers, reference.answers)),
        metrics={"kl": stop(kl)},
    )
