"""Cal-DPO: DPO whose log-ratios are also held to the scale of the reward."""

from __future__ import annotations

from typing import Annotated

from prefopt.losses._door import checked
from prefopt.losses._terms import log_ratio, logistic, squared, with_rewards
from prefopt.types import LossOutput, PairLogps, Range


@checked
def cal_dpo(
    policy: PairLogps, reference: PairLogps, *, beta: Annotated[float, Range(gt=0)] = 0.002
) -> LossOutput:
    """Pay -log sigmoid of the log-ratio margin, plus how far each log-ratio is from +-1 / (2 beta).

    For keeping the chosen answers' likelihood from sinking: the added term asks the chosen log-ratio to
    rise to a target and the rejected one to fall to its opposite. The targets are wide, 250 nats at the
    default beta, so for most of training the squares rule and the learning rate must be small.

    When:
        the chosen answers lose likelihood too

    Args:
        policy: P pairs under the model being trained.
        reference: the same P pairs under the reference.
        beta: sets the targets; it does not scale the margin inside the sigmoid.

    Returns:
        Loss [P]; rewards [P], beta times the log-ratio of each answer.

    Formula:
        h = policy - reference, sums of log-probs, for each answer
        loss = -log sigmoid(h_chosen - h_rejected)
             + 0.5 * (h_chosen - 1 / (2 * beta))^2 + 0.5 * (h_rejected + 1 / (2 * beta))^2

    Source:
        Xiao, Yuan, Zhu, Li and Honavar, "Cal-DPO: Calibrated Direct Preference Optimization for Language
        Model Alignment", 2024, arXiv 2412.14516. Formula from the authors' code, not checked against the
        paper, which may have no factor 0.5; the code averages the squares over the batch, which has the
        same mean.
    """
    chosen = log_ratio(policy.chosen, reference.chosen)
    rejected = log_ratio(policy.rejected, reference.rejected)
    target = 1.0 / (2.0 * beta)
    calibration = 0.5 * (squared(chosen, target=target) + squared(rejected, target=-target))
    return with_rewards(logistic(chosen - rejected) + calibration, chosen, rejected, beta)
