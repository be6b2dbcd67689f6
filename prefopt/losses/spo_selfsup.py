"""Self-supervised preference degrees, read from the reward margin: our reading of SPO."""

from __future__ import annotations

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from prefopt.losses._door import checked
from prefopt.losses._terms import add_cost, log_ratio, logistic, stop, with_rewards
from prefopt.types import LossOutput, PairLogps, Range


@checked
def spo_selfsup(
    policy: PairLogps,
    reference: PairLogps,
    *,
    pair_margin: Tensor,
    beta: Annotated[float, Range(gt=0)] = 0.1,
    gamma: Annotated[float, Range(ge=0)] = 0.1,
    spacing: Annotated[float, Range(gt=0)] = 1.0,
    max_degree: Annotated[float, Range(ge=1)] = 3.0,
) -> LossOutput:
    """Pay the DPO loss plus gamma times the cost of classifying how much better the chosen answer is.

    For answers paired with copies of themselves from which key content was cut, a little or a lot: the
    row's margin is the degree, 1 for the least cut. Ordinary pairs have no margin and pay the DPO loss
    alone, so both kinds can be mixed. The margin of rewards is told apart into degrees by thresholds
    ``spacing`` apart; up to degree 1 that is DPO's own question.

    This is our reading, not the authors' method: they classify the degree with a head on the model's
    hidden states, and neither their recipe nor their code is public. Their results say nothing of this
    loss. Not sequential PO (``spo_sequential``), also written SPO.

    When:
        each row has a margin by which the chosen answer is better

    Args:
        policy: P pairs under the model being trained.
        reference: the same P pairs under the reference.
        pair_margin: [P] degree of each pair, from 1; 0 where it is not known.
        beta: reward per nat of log-ratio.
        gamma: weight of the degree term; 0 is DPO.
        spacing: reward between two degrees.
        max_degree: this degree and above are one class, without an upper end.

    Returns:
        Loss [P]; rewards [P], beta times the log-ratio of each answer; metric ``degree_cost`` [P], zero
        where the degree is not known.

    Formula:
        m = beta * D, with D as in dpo; g = pair_margin; s = spacing
        P(g or more) = sigmoid(m - s * (g - 1)),  P(g) = P(g or more) - P(g + 1 or more)
        loss = -log sigmoid(m) - gamma * [g >= 1] * log P(g)

    Source:
        After Li, Huang, Zhang, Xu, Chen, Song, Shi, Wang and Xu, "Self-supervised Preference
        Optimization: Enhance Your Language Model with Preference Degree Awareness", 2024,
        arXiv 2409.17791. The degree term is ours: an ordered logistic model of the reward margin.
    """
    chosen = log_ratio(policy.chosen, reference.chosen)
    rejected = log_ratio(policy.rejected, reference.rejected)
    margin = beta * (chosen - rejected)
    cost = _degree_cost(margin, stop(pair_margin), spacing, max_degree)
    output = with_rewards(logistic(margin), chosen, rejected, beta)
    return add_cost(output, cost, gamma, degree_cost=cost)


def _degree_cost(margin: Tensor, degree: Tensor, spacing: float, max_degree: float) -> Tensor:
    """Return -log P(degree) under the margin [P], zero below degree 1."""
    at_least = F.logsigmoid(margin - spacing * (degree.clamp(max=max_degree) - 1.0))
    # sigmoid(a) - sigmoid(b) = sigmoid(a) * sigmoid(-b) * (1 - exp(b - a)), and here a - b = spacing
    not_more = F.logsigmoid(spacing * degree - margin) + math.log(-math.expm1(-spacing))
    cost = -(at_least + torch.where(degree >= max_degree, 0.0, not_more))
    # a degree that is NaN is not one that nobody knows
    return torch.where(degree < 1.0, 0.0, cost)
