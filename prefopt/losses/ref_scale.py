"""DPO-gamma: DPO with the reference counted more or less than fully."""

from __future__ import annotations

from typing import Annotated

from prefopt.losses._door import checked
from prefopt.losses._terms import logistic, with_rewards
from prefopt.types import LossOutput, PairLogps, Range


@checked
def ref_scale(
    policy: PairLogps,
    reference: PairLogps,
    *,
    beta: Annotated[float, Range(gt=0)] = 0.1,
    gamma: Annotated[float, Range(ge=0)] = 0.5,
) -> LossOutput:
    """Pay the DPO loss with the reference's log-probs multiplied by ``gamma``.

    DPO seldom turns round a pair that the reference ranks wrongly, for the margin to be made up is the
    reference's own. Below 1 the policy has less of it to make up and ranks more pairs rightly, at the
    price of moving further from the reference; above 1 it stays nearer. At 1 this is DPO, at 0 it needs
    no reference (``cpo`` with alpha 0 then saves its pass). The margin is not zero at the start of
    training unless gamma is 1.

    When:
        the reference holds training back

    Args:
        policy: P pairs under the model being trained.
        reference: the same P pairs under the reference.
        beta: reward per nat of log-ratio.
        gamma: how much the reference counts; 1 is DPO.

    Returns:
        Loss [P]; rewards [P], beta times the log-ratio to the scaled reference.

    Formula:
        h = policy - gamma * reference, for each answer
        loss = -log sigmoid(beta * (h_chosen - h_rejected))

    Source:
        Chen, Malladi, Zhang, Chen, Zhang, Ranganath and Cho, "Preference Learning Algorithms Do Not
        Learn Preference Rankings", 2024, arXiv 2405.19534, equation 4. The paper sweeps gamma from 0 to
        2; the default is ours.
    """
    chosen = policy.chosen.total - gamma * reference.chosen.total
    rejected = policy.rejected.total - gamma * reference.rejected.total
    loss = logistic(beta * (chosen - rejected))
    return with_rewards(loss, chosen, rejected, beta)
