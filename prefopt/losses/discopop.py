"""DiscoPOP: a blend of logistic and exponential loss that a language model discovered."""

from __future__ import annotations

from typing import Annotated

import torch

from prefopt.losses._door import checked
from prefopt.losses._terms import log_ratio, logistic, safe_exp, with_rewards
from prefopt.types import LossOutput, PairLogps, Range


@checked
def discopop(
    policy: PairLogps,
    reference: PairLogps,
    *,
    beta: Annotated[float, Range(gt=0)] = 0.05,
    tau: Annotated[float, Range(gt=0)] = 0.05,
) -> LossOutput:
    """Pay a blend of logistic and exponential loss that leans on the exponential as the margin grows.

    For a baseline from the search over losses; its authors found it strong across tasks. It is not
    convex: at ``tau`` 0.05 the loss rises between margins of -0.118 and 0.072 (beta times nats), which
    contains the start of training, so the first steps push the margins down. Keep beta small and expect
    accuracy to dip before it climbs.

    When:
        ways to pay for the margin are compared

    Args:
        policy: P pairs under the model being trained.
        reference: the same P pairs under the reference.
        beta: reward per nat of log-ratio.
        tau: width of the change from logistic to exponential, in units of reward.

    Returns:
        Loss [P]; rewards [P], beta times the log-ratio of each answer. The exponent is clamped to
        [-80, 80].

    Formula:
        m = beta * D, with D as in dpo
        g = sigmoid(m / tau), part of the gradient
        loss = (1 - g) * (-log sigmoid(m)) + g * exp(-m)

    Source:
        Lu, Holt, Fanconi, Chan, Foerster, van der Schaar and Lange, "Discovering Preference Optimization
        Algorithms with and for Large Language Models", 2024, arXiv 2406.08414, equation 5 (the
        log-ratio modulated loss); the same as the authors' code and TRL's ``discopop``.
    """
    chosen = log_ratio(policy.chosen, reference.chosen)
    rejected = log_ratio(policy.rejected, reference.rejected)
    margin = beta * (chosen - rejected)
    blended = torch.sigmoid(margin / tau) * safe_exp(-margin)
    loss = torch.sigmoid(-margin / tau) * logistic(margin) + blended
    return with_rewards(loss, chosen, rejected, beta)
