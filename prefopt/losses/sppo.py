"""SPPO: self-play as a regression of each log-ratio on the answer's win probability."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from prefopt.losses._door import checked
from prefopt.losses._terms import log_ratio, squared, with_rewards
from prefopt.types import LossOutput, PairLogps, Range, Scale


@checked
def sppo(
    policy: Annotated[PairLogps, Scale("probability")],
    reference: PairLogps,
    *,
    chosen_score: Tensor,
    rejected_score: Tensor,
    beta: Annotated[float, Range(gt=0)] = 1e-3,
) -> LossOutput:
    """Pay the squared distance of each answer's log-ratio from its centred win probability over beta.

    For rounds of self-play: sample several answers from the current policy, let a preference model
    estimate how often each beats the others, train on best and worst, and take the result as the next
    round's policy and reference. The scores must be those probabilities, between 0 and 1; scores on
    another scale ask for other targets. Targets are in nats of the whole answer, up to 500 at the
    default beta, and are meant to be approached, not reached.

    When:
        each row has a score of each answer
        training goes in rounds, on fresh answers

    Args:
        policy: P pairs under the model being trained.
        reference: the same P pairs under the policy that wrote them.
        chosen_score: [P], probability that the chosen answer beats the policy's own samples.
        rejected_score: [P], of the rejected answer.
        beta: inverse of the paper's step size eta.

    Returns:
        Loss [P]; rewards [P], beta times the log-ratio of each answer.

    Formula:
        h = policy - reference, sums of log-probs, for each answer
        loss = 0.5 * (h_chosen - (chosen_score - 0.5) / beta)^2
             + 0.5 * (h_rejected - (rejected_score - 0.5) / beta)^2

    Source:
        Wu, Sun, Yuan, Ji, Yang and Gu, "Self-Play Preference Optimization for Language Model Alignment",
        2024, arXiv 2405.00675, as in the authors' code (``sppo``).
    """
    chosen = log_ratio(policy.chosen, reference.chosen)
    rejected = log_ratio(policy.rejected, reference.rejected)
    above = squared(chosen, target=(chosen_score - 0.5) / beta)
    below = squared(rejected, target=(rejected_score - 0.5) / beta)
    return with_rewards(0.5 * (above + below), chosen, rejected, beta)


@checked
def sppo_hard(
    policy: PairLogps, reference: PairLogps, *, beta: Annotated[float, Range(gt=0)] = 1e-3
) -> LossOutput:
    """Pay the squared distance of the chosen log-ratio from 0.5 / beta and of the rejected one from -0.5 / beta.

    ``sppo`` for pairs without win probabilities: the chosen answer counts as always winning, the
    rejected one as always losing.

    When:
        the margin grows without end on clear pairs

    Args:
        policy: P pairs under the model being trained.
        reference: the same P pairs under the policy that wrote them.
        beta: inverse of the paper's step size eta.

    Returns:
        Loss [P]; rewards [P], beta times the log-ratio of each answer.

    Formula:
        h = policy - reference, sums of log-probs, for each answer
        loss = 0.5 * (h_chosen - 0.5 / beta)^2 + 0.5 * (h_rejected + 0.5 / beta)^2

    Source:
        Wu, Sun, Yuan, Ji, Yang and Gu, "Self-Play Preference Optimization for Language Model Alignment",
        2024, arXiv 2405.00675, with win probabilities 1 and 0. TRL's ``sppo_hard`` lacks the factor
        0.5, so its loss and gradient are twice these.
    """
    chosen = log_ratio(policy.chosen, reference.chosen)
    rejected = log_ratio(policy.rejected, reference.rejected)
    loss = 0.5 * (squared(chosen, target=0.5 / beta) + squared(rejected, target=-0.5 / beta))
    return with_rewards(loss, chosen, rejected, beta)
