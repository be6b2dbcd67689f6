"""Flex-DPO: DPO with one temperature for the chosen and another for the rejected answer."""

from __future__ import annotations

from typing import Annotated

from prefopt.losses._door import checked
from prefopt.losses._terms import log_ratio, logistic, with_rewards
from prefopt.types import LossOutput, PairLogps, Range


@checked
def flex(
    policy: PairLogps,
    reference: PairLogps,
    *,
    beta_chosen: Annotated[float, Range(gt=0)] = 0.1,
    beta_rejected: Annotated[float, Range(ge=0)] = 0.08,
) -> LossOutput:
    """Pay -log sigmoid of the margin with separate reward scales for the chosen and the rejected answer.

    Lowering a rejected answer is easier than raising a chosen one, so DPO comes to do little else. A
    ``beta_rejected`` below ``beta_chosen`` takes weight off the rejected side; much below, the margin
    can be had by raising the likelihood of everything. ``mappo`` sets the ratio pair by pair from the
    data's scores.

    When:
        the reference holds training back
        rejected answers pull too much

    Args:
        policy: P pairs under the model being trained.
        reference: the same P pairs under the reference.
        beta_chosen: reward per nat of the chosen answer's log-ratio.
        beta_rejected: reward per nat of the rejected answer's; equal to ``beta_chosen`` is DPO.

    Returns:
        Loss [P]; rewards [P], each answer's own beta times its log-ratio.

    Formula:
        h = policy - reference, for each answer
        loss = -log sigmoid(beta_chosen * h_chosen - beta_rejected * h_rejected)

    Source:
        Yan, Miao, Li, Zhang, Xie, Deng and Yan, "3D-Properties: Identifying Challenges in DPO and
        Charting a Path Forward", 2024, arXiv 2406.07327. Formula and defaults from reviews of the paper
        (beta_rejected best near 0.08 at beta_chosen 0.1), not checked against the paper.
    """
    chosen = beta_chosen * log_ratio(policy.chosen, reference.chosen)
    rejected = beta_rejected * log_ratio(policy.rejected, reference.rejected)
    return with_rewards(logistic(chosen - rejected), chosen, rejected, beta=1.0)
