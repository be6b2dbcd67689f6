"""Direct preference optimization, with optional label smoothing (cDPO)."""

from __future__ import annotations

from typing import Annotated

from prefopt.losses._door import checked
from prefopt.losses._terms import log_ratio, logistic, with_rewards
from prefopt.types import LossOutput, PairLogps, Range


@checked
def dpo(
    policy: PairLogps,
    reference: PairLogps,
    *,
    beta: Annotated[float, Range(gt=0)] = 0.1,
    label_smoothing: Annotated[float, Range(ge=0, lt=0.5)] = 0.0,
) -> LossOutput:
    """Pay -log sigmoid of the reward margin between the chosen and the rejected answer.

    The place to start. The gradient's scale is beta * sigmoid(-margin), so beta and the learning
    rate act together: a larger beta stays nearer to the reference. The chosen answer's own likelihood
    may fall as long as the rejected one's falls faster; ``with_nll`` holds it up. With
    ``label_smoothing`` e the labels are taken to be flipped with probability e (conservative DPO):
    the best margin is then log((1 - e) / e), not infinity.

    When:
        you begin with preferences

    Args:
        policy: P pairs under the model being trained.
        reference: the same P pairs under the reference.
        beta: reward per nat of log-ratio.
        label_smoothing: probability that a label is flipped.

    Returns:
        Loss [P]; rewards [P], beta times the log-ratio of each answer.

    Formula:
        D = (chosen - reference chosen) - (rejected - reference rejected), sums of log-probs
        loss = -(1 - label_smoothing) * log sigmoid(beta * D) - label_smoothing * log sigmoid(-beta * D)

    Source:
        Rafailov, Sharma, Mitchell, Ermon, Manning and Finn, "Direct Preference Optimization: Your
        Language Model is Secretly a Reward Model", 2023, arXiv 2305.18290, equation 7.
        Label smoothing: Mitchell, "A note on DPO with noisy preferences and relationship to IPO", 2023.
    """
    chosen = log_ratio(policy.chosen, reference.chosen)
    rejected = log_ratio(policy.rejected, reference.rejected)
    loss = logistic(beta * (chosen - rejected), label_smoothing)
    return with_rewards(loss, chosen, rejected, beta)
