"""NCA on pairs: noise-contrastive estimation, which holds the chosen likelihood up."""

from __future__ import annotations

from typing import Annotated

from prefopt.losses._door import checked
from prefopt.losses._terms import log_ratio, logistic, with_rewards
from prefopt.types import LossOutput, PairLogps, Range


@checked
def nca_pair(
    policy: PairLogps, reference: PairLogps, *, beta: Annotated[float, Range(gt=0)] = 0.01
) -> LossOutput:
    """Pay for classifying the chosen answer as wanted and either answer as noise, each by itself.

    Where DPO lets the chosen answer's likelihood sink as long as the other's sinks faster, this keeps
    it up, for the terms see each answer and not only their difference; good for reasoning and code,
    where the chosen answer is right and not merely better. Both answers are pulled alike at the start;
    the chosen reward then settles at log 2, while the rejected one falls on.

    When:
        the chosen answers lose likelihood too

    Args:
        policy: P pairs under the model being trained.
        reference: the same P pairs under the reference.
        beta: reward per nat of log-ratio.

    Returns:
        Loss [P]; rewards [P], beta times the log-ratio of each answer.

    Formula:
        h = policy - reference, sums of log-probs, for each answer
        loss = -log sigmoid(beta * h_chosen)
               - 0.5 * log sigmoid(-beta * h_chosen) - 0.5 * log sigmoid(-beta * h_rejected)

    Source:
        Chen, He, Yuan, Cui, Su and Zhu, "Noise Contrastive Alignment of Language Models with Explicit
        Rewards", 2024, arXiv 2402.05369, for two answers; the same as the authors' code and TRL's
        ``nca_pair``.
    """
    chosen = log_ratio(policy.chosen, reference.chosen)
    rejected = log_ratio(policy.rejected, reference.rejected)
    noise = 0.5 * (logistic(-beta * chosen) + logistic(-beta * rejected))
    return with_rewards(logistic(beta * chosen) + noise, chosen, rejected, beta)
