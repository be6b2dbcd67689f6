"""EXO on pairs: the reverse KL from the policy's choice to the one that labels or scores prefer."""

from __future__ import annotations

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from prefopt.losses._door import checked
from prefopt.losses._terms import log_ratio, with_rewards
from prefopt.types import LossOutput, PairLogps, Range


@checked
def exo_pref(
    policy: PairLogps,
    reference: PairLogps,
    *,
    beta: Annotated[float, Range(gt=0)] = 0.1,
    label_smoothing: Annotated[float, Range(gt=0, lt=0.5)] = 1e-3,
) -> LossOutput:
    """Pay the reverse KL from the policy's choice within the pair to the label's.

    Where DPO's forward KL spreads over what the data prefers, this seeks its mode, as RL against a
    reward does. The gradient fades at both ends: a pair that is far on the wrong side is given up, so
    start from a policy that can rank. ``label_smoothing`` sets how far the right side pulls: the best
    margin is log((1 - e) / e), 6.9 at 1e-3.

    When:
        wrong labels pull hardest

    Args:
        policy: P pairs under the model being trained.
        reference: the same P pairs under the reference.
        beta: reward per nat of log-ratio.
        label_smoothing: probability that the target gives the rejected answer.

    Returns:
        Loss [P]; rewards [P], beta times the log-ratio of each answer.

    Formula:
        m = beta * D, with D as in dpo; e = label_smoothing
        q = sigmoid(m)
        loss = q * (log q - log(1 - e)) + (1 - q) * (log(1 - q) - log e)

    Source:
        Ji, Lu, Niu, Ke, Wang, Zhu, Tang and Huang, "Towards Efficient Exact Optimization of Language Model
        Alignment", 2024, arXiv 2402.00856, EXO-pref with two answers, in the form of TRL's ``exo_pair``.
        The authors' code does not normalise its target: log-probabilities 0 and -10 in place of
        log(1 - e) and log e.
    """
    chosen = log_ratio(policy.chosen, reference.chosen)
    rejected = log_ratio(policy.rejected, reference.rejected)
    loss = _reverse_kl(beta * (chosen - rejected), math.log1p(-label_smoothing), math.log(label_smoothing))
    return with_rewards(loss, chosen, rejected, beta)


@checked
def exo_rw(
    policy: PairLogps,
    reference: PairLogps,
    *,
    chosen_score: Tensor,
    rejected_score: Tensor,
    beta: Annotated[float, Range(gt=0)] = 0.1,
    beta_r: Annotated[float, Range(gt=0)] = 0.1,
) -> LossOutput:
    """Pay the reverse KL from the policy's choice within the pair to the softmax of the scores.

    For pairs with scores of a reward model, where the size of the gap matters and not its sign alone:
    the margin settles at the score gap over ``beta_r``, and a tie asks for no margin at all. Scale
    ``beta_r`` to the scores: a gap of 5 ``beta_r`` is as good as certain.

    When:
        each row has a score of each answer

    Args:
        policy: P pairs under the model being trained.
        reference: the same P pairs under the reference.
        chosen_score: [P], the score of each chosen answer.
        rejected_score: [P], of each rejected answer.
        beta: reward per nat of log-ratio.
        beta_r: temperature of the scores.

    Returns:
        Loss [P]; rewards [P], beta times the log-ratio of each answer.

    Formula:
        m = beta * D, with D as in dpo
        q = sigmoid(m), t = sigmoid((chosen_score - rejected_score) / beta_r)
        loss = q * (log q - log t) + (1 - q) * (log(1 - q) - log(1 - t))

    Source:
        Ji, Lu, Niu, Ke, Wang, Zhu, Tang and Huang, "Towards Efficient Exact Optimization of Language Model
        Alignment", 2024, arXiv 2402.00856, EXO-rw with two answers, as in the authors' code.
    """
    chosen = log_ratio(policy.chosen, reference.chosen)
    rejected = log_ratio(policy.rejected, reference.rejected)
    target = (chosen_score - rejected_score) / beta_r
    loss = _reverse_kl(beta * (chosen - rejected), F.logsigmoid(target), F.logsigmoid(-target))
    return with_rewards(loss, chosen, rejected, beta)


def _reverse_kl(margin: Tensor, log_target: Tensor | float, log_other: Tensor | float) -> Tensor:
    """Return KL([q, 1 - q] || target) [P] with q = sigmoid(margin)."""
    first = torch.sigmoid(margin) * (F.logsigmoid(margin) - log_target)
    return first + torch.sigmoid(-margin) * (F.logsigmoid(-margin) - log_other)
