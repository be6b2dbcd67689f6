"""BCO on pairs: each answer classified by itself as wanted or not."""

from __future__ import annotations

from typing import Annotated

from prefopt.losses._door import checked
from prefopt.losses._terms import log_ratio, logistic, with_rewards
from prefopt.types import LossOutput, PairLogps, Range


@checked
def bco_pair(
    policy: PairLogps, reference: PairLogps, *, beta: Annotated[float, Range(gt=0)] = 0.01
) -> LossOutput:
    """Pay for classifying the chosen answer as wanted and the rejected one as unwanted, each by itself.

    Asks the chosen answer's likelihood to rise above the reference's and the rejected one's to fall
    below, where DPO asks for their difference alone. Used by itself, and as the quality term of mixed
    preference optimization beside ``dpo`` and ``with_nll``. This is the form without a reward shift.

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
        loss = -log sigmoid(beta * h_chosen) - log sigmoid(-beta * h_rejected)

    Source:
        Jung, Han, Nam and On, "Binary Classifier Optimization for Large Language Model Alignment", 2024,
        arXiv 2404.04656. The paper shifts both rewards by their running mean; without the shift this is
        TRL's ``bco_pair`` as coded (TRL's page prints the formula of DPO).
    """
    chosen = log_ratio(policy.chosen, reference.chosen)
    rejected = log_ratio(policy.rejected, reference.rejected)
    loss = logistic(beta * chosen) + logistic(-beta * rejected)
    return with_rewards(loss, chosen, rejected, beta)
