"""TDPO: DPO with the divergence from the reference measured at every token."""

from __future__ import annotations

from typing import Annotated, Literal

from prefopt.losses._compose import COMBINING
from prefopt.losses._door import checked
from prefopt.losses._terms import log_ratio, logistic, stop, with_rewards
from prefopt.types import LossOutput, OnlyWith, PairLogps, Range, Refuses, Stats


@checked
def tdpo(
    policy: Annotated[PairLogps, Stats("kl"), Refuses(*COMBINING, "f_div")],
    reference: PairLogps,
    *,
    beta: Annotated[float, Range(gt=0)] = 0.1,
    alpha: Annotated[float, Range(ge=0), OnlyWith("variant", "tdpo2")] = 0.5,
    variant: Literal["tdpo1", "tdpo2"] = "tdpo2",
) -> LossOutput:
    """Pay the DPO loss on a margin reduced by how much further the policy strays on the rejected answer.

    For holding the divergence in check token by token while the margin grows, above all on the rejected
    answers, where DPO lets the policy stray. "tdpo2" holds the chosen answer's divergence constant, so that
    it is not pushed up to widen the margin, and is the authors' choice. Needs the reference's whole
    distribution at every token, so a reference model must be at hand; it costs two more products with
    the head, or four without ``cached``.

    When:
        answers lose their variety

    Args:
        policy: P pairs under the model being trained, with the stat ``kl`` per token.
        reference: the same P pairs under the reference.
        beta: reward per nat.
        alpha: weight of the difference in divergence, in "tdpo2" only; 0 is DPO.
        variant: "tdpo1" or "tdpo2".

    Returns:
        Loss [P]; rewards [P], beta times (log-ratio + K); metrics ``chosen_kl`` and ``rejected_kl`` [P], nats.

    Formula:
        K = sum over the answer's tokens of KL(reference || policy), the whole vocabulary at each
        D as in dpo
        tdpo1  loss = -log sigmoid(beta * (D - (K_rejected - K_chosen)))
        tdpo2  loss = -log sigmoid(beta * (D - alpha * (K_rejected - K_chosen))), K_chosen held constant

    Raises:
        RecipeError: another ``alpha`` than the default with "tdpo1".

    Source:
        Zeng, Liu, Ma, Yang, Zhang and Wang, "Token-level Direct Preference Optimization", 2024,
        arXiv 2404.11999; the same as the authors' code.
    """
    chosen = log_ratio(policy.chosen, reference.chosen)
    rejected = log_ratio(policy.rejected, reference.rejected)
    chosen_kl = policy.chosen.sum(policy.chosen.stats["kl"])
    rejected_kl = policy.rejected.sum(policy.rejected.stats["kl"])
    if variant == "tdpo1":
        shift = rejected_kl - chosen_kl
    else:
        shift = alpha * (rejected_kl - stop(chosen_kl))
    loss = logistic(beta * (chosen - rejected - shift))
    return with_rewards(
        loss, chosen + chosen_kl, rejected + rejected_kl, beta, chosen_kl=chosen_kl, rejected_kl=rejected_kl
    )
