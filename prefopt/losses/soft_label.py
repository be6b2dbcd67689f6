"""DPO with a probability for each label: soft-preference cross-entropy."""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from torch import Tensor

from prefopt.losses._door import checked
from prefopt.losses._terms import log_ratio, with_rewards
from prefopt.types import LossOutput, PairLogps, Range


@checked
def soft_label(
    policy: PairLogps,
    reference: PairLogps,
    *,
    soft_label: Tensor,
    beta: Annotated[float, Range(gt=0)] = 0.1,
) -> LossOutput:
    """Pay the cross-entropy between the label's probability in the data and the policy's.

    For pairs that come with the share of votes, or with a judge's own certainty: a pair of 0.5 keeps the
    margin at zero, a certain one pulls as in DPO, and each margin ends at the log-odds of its label.
    Conservative DPO (``dpo`` with ``label_smoothing``) gives every pair the same certainty;
    ``reward_aware`` takes it from two scores.

    When:
        each row has a probability that its label is right

    Args:
        policy: P pairs under the model being trained.
        reference: the same P pairs under the reference.
        soft_label: [P] probability, from 0 to 1, that the chosen answer is the better one.
        beta: reward per nat of log-ratio.

    Returns:
        Loss [P]; rewards [P], beta times the log-ratio of each answer.

    Formula:
        D as in dpo, s = soft_label
        loss = -s * log sigmoid(beta * D) - (1 - s) * log sigmoid(-beta * D)

    Source:
        Zhai, Zhang, Xu, Peng, Yu, Feng, Yang, Ding and Wang, "Online Self-Preferring Language Models",
        2024, arXiv 2405.14103. Formula of the soft-preference cross-entropy from the method's
        description, not checked against the paper.
    """
    chosen = log_ratio(policy.chosen, reference.chosen)
    rejected = log_ratio(policy.rejected, reference.rejected)
    margin = beta * (chosen - rejected)
    loss = -soft_label * F.logsigmoid(margin) - (1.0 - soft_label) * F.logsigmoid(-margin)
    return with_rewards(loss, chosen, rejected, beta)
