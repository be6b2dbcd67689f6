"""SimPO: length-normalised preference optimization without a reference."""

from __future__ import annotations

from typing import Annotated

from prefopt.losses._door import checked
from prefopt.losses._terms import Link, linked, with_rewards
from prefopt.types import LossOutput, OnlyWith, PairLogps, Range, Reads


@checked
def simpo(
    policy: Annotated[PairLogps, Reads("length")],
    *,
    beta: Annotated[float, Range(gt=0)] = 2.0,
    gamma: Annotated[float, Range(ge=0)] = 1.0,
    label_smoothing: Annotated[float, Range(ge=0, lt=0.5), OnlyWith("link", "logistic")] = 0.0,
    link: Link = "logistic",
) -> LossOutput:
    """Pay -log sigmoid of the per-token reward margin beyond a target margin, without a reference.

    Cheaper than DPO (no reference pass) and indifferent to length by construction; nothing ties the
    policy to its start, so the learning rate does (3e-7 to 1e-6 for full fine-tuning).

    ``gamma`` is the target margin itself, in units of reward. The authors' code takes
    ``gamma_beta_ratio`` instead: gamma = gamma_beta_ratio * beta. Their ratio 0.5 at beta 2 is gamma
    1.0, the default here; their 0.3 at beta 10 is gamma 3.0.

    When:
        answers grow longer and longer
        there is no memory for a reference

    Args:
        policy: P pairs under the model being trained.
        beta: reward per nat per token.
        gamma: margin of rewards beyond which the link counts; there "logistic" costs log 2.
        label_smoothing: probability that a label is flipped; for "logistic".
        link: "logistic", or "hinge", which leaves a pair alone once its margin is 1 beyond ``gamma``.

    Returns:
        Loss [P]; rewards [P], beta times the mean log-prob of each answer.

    Formula:
        a = log-prob / length, for each answer
        m = beta * (a_chosen - a_rejected) - gamma, e = label_smoothing
        loss = -(1 - e) * log sigmoid(m) - e * log sigmoid(-m)     (logistic)
        loss = max(0, 1 - m)                                       (hinge)

    Source:
        Meng, Xia and Chen, "SimPO: Simple Preference Optimization with a Reference-Free Reward", 2024,
        arXiv 2405.14734, equation 6; smoothing and hinge as in the authors' trainer, where the hinge
        ignores the smoothing with a warning.
    """
    # total over length, not `mean`: the two agree until a transform replaces `total`
    chosen = policy.chosen.total / policy.chosen.length
    rejected = policy.rejected.total / policy.rejected.length
    loss = linked(beta * (chosen - rejected) - gamma, link, label_smoothing)
    return with_rewards(loss, chosen, rejected, beta)
