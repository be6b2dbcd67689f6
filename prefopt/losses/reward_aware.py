"""Reward-aware PO (NVIDIA's RPO): the margin learns how much better, not only which."""

from __future__ import annotations

from typing import Annotated, Literal

import torch.nn.functional as F
from torch import Tensor

from prefopt.losses._door import checked
from prefopt.losses._terms import Norm, log_ratio, with_rewards
from prefopt.types import LossOutput, OnlyWith, PairLogps, Range, Reads

MarginDivergence = Literal["backward_kl", "forward_kl", "squared"]


@checked
def reward_aware(
    policy: Annotated[PairLogps, Reads("length", only_with=OnlyWith("norm", "mean"))],
    reference: PairLogps,
    *,
    chosen_score: Tensor,
    rejected_score: Tensor,
    beta: Annotated[float, Range(gt=0)] = 0.2,
    eta: Annotated[float, Range(gt=0)] = 1.0,
    divergence: MarginDivergence = "backward_kl",
    norm: Norm = "sum",
) -> LossOutput:
    """Pay the divergence between the policy's reward margin and the margin of the data's scores.

    For pairs scored by a reward model: DPO pushes every margin without end, this one only to the size
    that the scores ask for, so a close pair moves little. "squared" compares the margins themselves,
    the other two the probabilities of preference; "backward_kl" is cDPO with a smoothing of its own for
    each pair, less the entropy of the target, so the loss ends at 0 and its values do not compare with
    DPO's. Not ``relative`` (relative PO) nor ``reverse`` (reverse PO), also written RPO.

    When:
        each row has a score of each answer

    Args:
        policy: P pairs under the model being trained.
        reference: the same P pairs under the reference.
        chosen_score: [P] score of each chosen answer.
        rejected_score: [P] score of each rejected answer.
        beta: reward per nat of log-ratio.
        eta: reward per unit of score.
        divergence: what is measured between the two margins.
        norm: "mean" divides each log-ratio by its answer's length; "sum" does not.

    Returns:
        Loss [P]; rewards [P], beta times the log-ratio in the same norm.

    Formula:
        m = beta * (h_chosen - h_rejected), h = (policy - reference) / length^[norm = mean]
        T = eta * (chosen_score - rejected_score), q = sigmoid(m), t = sigmoid(T)
        loss = t * log(t / q) + (1 - t) * log((1 - t) / (1 - q))     (backward_kl)
        loss = q * log(q / t) + (1 - q) * log((1 - q) / (1 - t))     (forward_kl)
        loss = (m - T)^2                                             (squared)

    Source:
        Sun et al., "Reward-aware Preference Optimization: A Unified Mathematical Framework for Model
        Alignment", 2025, arXiv 2502.00203; defaults as in the authors' NeMo-Aligner, whose names of the
        divergences are rpo_bwd_kl, rpo_fwd_kl and rpo_sq. "squared" is, up to scale, REBEL's regression
        (Gao et al., 2024, arXiv 2404.16767) on scored pairs.
    """
    chosen = log_ratio(policy.chosen, reference.chosen, norm)
    rejected = log_ratio(policy.rejected, reference.rejected, norm)
    margin = beta * (chosen - rejected)
    target = eta * (chosen_score - rejected_score)
    match divergence:
        case "backward_kl":
            loss = _bernoulli_kl(target, margin)
        case "forward_kl":
            loss = _bernoulli_kl(margin, target)
        case "squared":
            loss = (margin - target).square()
    return with_rewards(loss, chosen, rejected, beta)


def _bernoulli_kl(of: Tensor, against: Tensor) -> Tensor:
    """Return KL(sigmoid(of) || sigmoid(against)) of two coins given by their log-odds."""
    heads = of.sigmoid() * (F.logsigmoid(of) - F.logsigmoid(against))
    return heads + (-of).sigmoid() * (F.logsigmoid(-of) - F.logsigmoid(-against))
