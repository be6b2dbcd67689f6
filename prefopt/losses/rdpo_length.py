"""R-DPO: DPO with a length term in the margin, against growing answers."""

from __future__ import annotations

from typing import Annotated

from prefopt.losses._door import checked
from prefopt.losses._terms import log_ratio, logistic, with_rewards
from prefopt.types import LossOutput, PairLogps, Range, Reads


@checked
def rdpo_length(
    policy: Annotated[PairLogps, Reads("length")],
    reference: PairLogps,
    *,
    beta: Annotated[float, Range(gt=0)] = 0.1,
    alpha: Annotated[float, Range(ge=0)] = 0.01,
) -> LossOutput:
    """Pay the DPO loss on a margin that is larger the longer the chosen answer is than the rejected one.

    For data whose chosen answers are longer, where DPO learns length along with quality: a pair won by
    length already counts as won, so its gradient shrinks, and a pair won in spite of its length pulls
    harder. ``ld_dpo`` instead counts the longer answer's tail less. Lengths are in tokens, so alpha 0.01
    forgives a pair one unit of reward per 100 tokens.

    Not ``robust`` (robust DPO, also written rDPO) and not ``rationale`` (rationale DPO). Some trainers
    put the length term in with a minus; that makes long chosen answers pull harder, which is the
    opposite of what the derivation asks for.

    When:
        answers grow longer and longer

    Args:
        policy: P pairs under the model being trained.
        reference: the same P pairs under the reference.
        beta: reward per nat of log-ratio.
        alpha: reward per token of length; 0 is DPO.

    Returns:
        Loss [P]; rewards [P], beta times the log-ratio of each answer, without the length term.

    Formula:
        D as in dpo, n = length in tokens
        loss = -log sigmoid(beta * D + alpha * (n_chosen - n_rejected))

    Source:
        Park, Rafailov, Ermon and Finn, "Disentangling Length from Quality in Direct Preference
        Optimization", 2024, arXiv 2403.19159. Derived from a reward r - alpha * n, of which the policy
        is the optimum: r = beta * log-ratio + alpha * n + constant; not checked against the paper. The
        default of alpha is ours.
    """
    chosen = log_ratio(policy.chosen, reference.chosen)
    rejected = log_ratio(policy.rejected, reference.rejected)
    longer = policy.chosen.length - policy.rejected.length
    loss = logistic(beta * (chosen - rejected) + alpha * longer)
    return with_rewards(loss, chosen, rejected, beta)
