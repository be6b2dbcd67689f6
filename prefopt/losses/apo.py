"""Anchored preference optimization: each answer against its own likelihood under the reference."""

from __future__ import annotations

from typing import Annotated

import torch

from prefopt.losses._door import checked
from prefopt.losses._terms import log_ratio, with_rewards
from prefopt.types import LossOutput, PairLogps, Range


@checked
def apo_zero(
    policy: PairLogps, reference: PairLogps, *, beta: Annotated[float, Range(gt=0)] = 0.1
) -> LossOutput:
    """Pay for a chosen answer that is not above its anchor and a rejected one that is not below.

    For chosen answers that are better than what the policy writes itself (a stronger model's, an edited
    revision): their likelihood is asked to rise, not only their lead. Where the policy is already better
    than the data take ``apo_down``. Each term is bounded, so far outliers have no gradient either way.

    When:
        the chosen answers are better than the policy's own

    Args:
        policy: P pairs under the model being trained.
        reference: the same P pairs under the reference.
        beta: reward per nat of log-ratio.

    Returns:
        Loss [P], between 0 and 2; rewards [P], beta times the log-ratio of each answer.

    Formula:
        h = policy - reference, sums of log-probs, for each answer
        loss = (1 - sigmoid(beta * h_chosen)) + sigmoid(beta * h_rejected)

    Source:
        D'Oosterlinck, Xu, Develder, Demeester, Singh, Potts, Kiela and Mehri, "Anchored Preference
        Optimization and Contrastive Revisions: Addressing Underspecification in Alignment", 2024,
        arXiv 2408.06266, equation 7; the same as TRL's ``apo_zero``.
    """
    chosen = log_ratio(policy.chosen, reference.chosen)
    rejected = log_ratio(policy.rejected, reference.rejected)
    loss = torch.sigmoid(-beta * chosen) + torch.sigmoid(beta * rejected)
    return with_rewards(loss, chosen, rejected, beta)


@checked
def apo_down(
    policy: PairLogps, reference: PairLogps, *, beta: Annotated[float, Range(gt=0)] = 0.1
) -> LossOutput:
    """Pay for a chosen answer above its anchor and for a rejected one that is not further below.

    For chosen answers that are worse than what the policy writes itself, and rejected ones worse still:
    both likelihoods are asked to fall, the rejected one's faster. Where the chosen answers are better
    than the policy take ``apo_zero``.

    When:
        the chosen answers are worse than the policy's own

    Args:
        policy: P pairs under the model being trained.
        reference: the same P pairs under the reference.
        beta: reward per nat of log-ratio.

    Returns:
        Loss [P], between 0 and 2; rewards [P], beta times the log-ratio of each answer.

    Formula:
        h = policy - reference, sums of log-probs, for each answer
        loss = sigmoid(beta * h_chosen) + (1 - sigmoid(beta * (h_chosen - h_rejected)))

    Source:
        D'Oosterlinck, Xu, Develder, Demeester, Singh, Potts, Kiela and Mehri, "Anchored Preference
        Optimization and Contrastive Revisions: Addressing Underspecification in Alignment", 2024,
        arXiv 2408.06266, equation 8; the same as TRL's ``apo_down``.
    """
    chosen = log_ratio(policy.chosen, reference.chosen)
    rejected = log_ratio(policy.rejected, reference.rejected)
    loss = torch.sigmoid(beta * chosen) + torch.sigmoid(-beta * (chosen - rejected))
    return with_rewards(loss, chosen, rejected, beta)
