"""PMPO: raise the likelihood of wanted answers, lower that of unwanted ones, and stay near the reference."""

from __future__ import annotations

from typing import Annotated

import torch

from prefopt.losses._terms import log_ratio, stop
from prefopt.types import LossOutput, Range, SideLogps, Stats


def pmpo(
    policy: Annotated[SideLogps, Stats("kl")],
    reference: SideLogps,
    *,
    alpha: Annotated[float, Range(ge=0, le=1)] = 0.5,
    beta: Annotated[float, Range(gt=0)] = 0.5,
) -> LossOutput:
    """Pay minus the log-prob of a desirable answer, or plus that of an undesirable one, and the divergence.

    For answers that are each good or bad by themselves, such as samples that pass a test or fail it; either
    kind alone will do. Nothing but the divergence bounds the undesirable side, so with few desirable answers
    or none ``beta`` must be large. The divergence is meant over samples of the reference: score answers that
    it wrote, and begin anew with the trained policy as reference from time to time. Needs the reference's
    whole distribution at every token, so a reference model must be at hand.

    Args:
        policy: S answers under the model being trained, with the stat ``kl`` per token.
        reference: the same S answers under the reference.
        alpha: weight of the desirable answers; 1 learns from them alone, 0 from the undesirable ones alone.
        beta: weight of the divergence.

    Returns:
        Loss [S]; rewards [S], beta times the log-ratio of each answer; metric ``kl`` [S], nats.

    Formula:
        K = sum over the answer's tokens of KL(reference || policy), the whole vocabulary at each
        loss = -2 * alpha * log-prob + beta * K           (desirable)
        loss = 2 * (1 - alpha) * log-prob + beta * K      (undesirable)

    Source:
        Abdolmaleki, Piot, Shahriari, Springenberg, Hertweck, Joshi, Oh, Bloesch, Lampe, Heess, Buchli and
        Riedmiller, "Preference Optimization as Probabilistic Inference", 2024, arXiv 2410.04166. The paper
        averages over each kind by itself; here the mean is over all answers, and the factor 2 makes both
        the same where there are as many of each.
    """
    answers = policy.answers
    total = answers.total
    likelihood = torch.where(policy.is_desirable, -2.0 * alpha * total, 2.0 * (1.0 - alpha) * total)
    divergence = answers.sum(answers.stats["kl"])
    return LossOutput(
        loss=likelihood + beta * divergence,
        chosen_reward=stop(beta * log_ratio(answers, reference.answers)),
        metrics={"kl": stop(divergence)},
    )
