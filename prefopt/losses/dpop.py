"""DPO-Positive (Smaug): DPO that will not let the chosen answer fall below the reference."""

from __future__ import annotations

from typing import Annotated

from prefopt.losses._door import checked
from prefopt.losses._terms import log_ratio, logistic, with_rewards
from prefopt.types import LossOutput, PairLogps, Range


@checked
def dpop(
    policy: PairLogps,
    reference: PairLogps,
    *,
    beta: Annotated[float, Range(gt=0)] = 0.3,
    lam: Annotated[float, Range(ge=0)] = 50.0,
) -> LossOutput:
    """Pay the DPO loss on a margin reduced by how far the chosen answer has fallen below the reference.

    For pairs that differ in a few tokens (edited code, corrected sums), where DPO lowers the chosen
    answer together with the rejected one. The penalty acts only below the reference: above it, this is
    DPO. At ``lam`` 50 a loss of one nat costs as much margin as 50 nats of log-ratio, which makes the
    first steps stiff; 5 is a milder start. ``with_nll`` is the other way to hold up the chosen answer,
    and pulls at all times.

    When:
        the chosen answers lose likelihood too

    Args:
        policy: P pairs under the model being trained.
        reference: the same P pairs under the reference.
        beta: reward per nat of log-ratio.
        lam: margin given up for each nat that the chosen answer is below the reference; 0 is DPO.

    Returns:
        Loss [P]; rewards [P], beta times the log-ratio of each answer, without the penalty.

    Formula:
        h = policy - reference, for each answer
        loss = -log sigmoid(beta * (h_chosen - h_rejected - lam * max(0, -h_chosen)))

    Source:
        Pal, Karkhanis, Dooley, Roberts, Naidu and White, "Smaug: Fixing Failure Modes of Preference
        Optimisation with DPO-Positive", 2024, arXiv 2402.13228. Formula from public implementations
        (PaddleNLP), which keep the penalty inside beta; not checked against the paper.
    """
    chosen = log_ratio(policy.chosen, reference.chosen)
    rejected = log_ratio(policy.rejected, reference.rejected)
    shortfall = (-chosen).clamp(min=0.0)
    loss = logistic(beta * (chosen - rejected - lam * shortfall))
    return with_rewards(loss, chosen, rejected, beta)
