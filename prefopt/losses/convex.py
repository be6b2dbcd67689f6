"""Generalized preference optimization: any of six classification losses of the DPO margin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from torch import Tensor

from prefopt.losses._door import checked
from prefopt.losses._terms import log_ratio, logistic, safe_exp, shortfall, squared, with_rewards
from prefopt.types import LossOutput, PairLogps, Range

ConvexLink = Literal["logistic", "hinge", "squared", "exponential", "truncated_quadratic", "savage"]

_LINKS: dict[ConvexLink, Callable[[Tensor], Tensor]] = {
    "logistic": logistic,
    "hinge": shortfall,
    "squared": lambda margin: squared(margin, target=1.0),
    "exponential": lambda margin: safe_exp(-margin),
    "truncated_quadratic": lambda margin: shortfall(margin).square(),
    "savage": lambda margin: torch.sigmoid(-margin).square(),
}


@checked
def convex(
    policy: PairLogps,
    reference: PairLogps,
    *,
    beta: Annotated[float, Range(gt=0)] = 0.1,
    link: ConvexLink = "logistic",
) -> LossOutput:
    """Pay a chosen convex function of the reward margin between the chosen and the rejected answer.

    To compare how strongly a loss holds the policy back while all else stays equal. "logistic" is DPO,
    "hinge" is ``hinge``, "squared" is ``ipo`` on sums with half the beta, up to a factor. The squared
    ones ask for a margin of one and then stop ("squared" even pulls back); "exponential" punishes a
    mis-ranked pair most and follows label noise most; "savage", which is not convex, gives hopeless
    pairs up. The paper finds that all trade quality against distance alike once beta is tuned for each.

    When:
        ways to pay for the margin are compared

    Args:
        policy: P pairs under the model being trained.
        reference: the same P pairs under the reference.
        beta: reward per nat of log-ratio.
        link: the function of the margin.

    Returns:
        Loss [P]; rewards [P], beta times the log-ratio of each answer. The exponent of "exponential" is
        clamped to [-80, 80].

    Formula:
        m = beta * D, with D as in dpo
        logistic             loss = log(1 + exp(-m))
        hinge                loss = max(0, 1 - m)
        squared              loss = (1 - m)^2
        exponential          loss = exp(-m)
        truncated_quadratic  loss = max(0, 1 - m)^2
        savage               loss = 1 / (1 + exp(m))^2

    Source:
        Tang, Guo, Zheng, Calandriello, Munos, Rowland, Richemond, Valko, Avila Pires and Piot,
        "Generalized Preference Optimization: A Unified Approach to Offline Alignment", 2024,
        arXiv 2402.05749. The links are the usual losses of those names, not checked against the paper.
    """
    chosen = log_ratio(policy.chosen, reference.chosen)
    rejected = log_ratio(policy.rejected, reference.rejected)
    loss = _LINKS[link](beta * (chosen - rejected))
    return with_rewards(loss, chosen, rejected, beta)
