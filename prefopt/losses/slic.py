"""SLiC-HF: a hinge on the log-probs themselves, held up by likelihood."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from prefopt.losses._door import checked
from prefopt.losses._terms import Nll, add_cost, answer_nll, with_rewards
from prefopt.types import Applies, LossOutput, PairLogps, Range, Reads


@checked
def slic(
    policy: Annotated[PairLogps, Reads("length"), Applies("with_nll")],
    *,
    mean_chosen_length: Tensor | None = None,
    delta: Annotated[float, Range(gt=0)] = 1.0,
    lam: Annotated[float, Range(ge=0)] = 0.1,
    nll: Nll = "sequence",
) -> LossOutput:
    """Pay what the chosen log-prob's lead lacks to ``delta``, plus the chosen answer's NLL, without a reference.

    For a cheap first try without a reference, on pairs of similar length: the log-probs are sums, so a
    longer answer starts behind. The likelihood term, not a reference, keeps the policy near its start.
    ``hinge`` is the same idea against a reference.

    When:
        there is no memory for a reference

    Args:
        policy: P pairs under the model being trained.
        mean_chosen_length: [] tokens, the mean length of the step's chosen answers; for "batch_token".
        delta: lead asked for, in nats.
        lam: weight of the likelihood term, which is per token; times the usual length of an answer it weighs
            as much as that number does where the term is a sum.
        nll: "sequence" averages over the answer's own tokens; "batch_token" over those of the step.

    Returns:
        Loss [P]; rewards [P], the log-prob of each answer; metric ``nll`` [P].

    Formula:
        S = sum of log-probs, for each answer
        loss = max(0, delta - S_chosen + S_rejected) + lam * (-log-prob of chosen / length)

    Raises:
        ValueError: "batch_token" without ``mean_chosen_length``.

    Source:
        Zhao, Joshi, Liu, Khalman, Saleh and Liu, "SLiC-HF: Sequence Likelihood Calibration with Human
        Feedback", 2023, arXiv 2305.10425, with delta and the chosen answer as target of the likelihood
        term from HALOs. Both sum that term over tokens; here it is per token, as in every loss of this
        library. So the default of ``lam``, 0.1, is HALOs' number and not its weight: on answers of n tokens
        it weighs the term n times less. TRL credits its ``hinge`` to this paper; that is ``hinge``.
    """
    chosen, rejected = policy.chosen.total, policy.rejected.total
    cost = answer_nll(policy.chosen, nll, mean_chosen_length)
    loss = (delta - chosen + rejected).clamp(min=0.0)
    return add_cost(with_rewards(loss, chosen, rejected, 1.0), cost, lam, nll=cost)
