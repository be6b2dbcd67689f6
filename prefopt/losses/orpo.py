"""ORPO: supervised fine-tuning with an odds-ratio penalty, without a reference."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from prefopt.losses._door import checked
from prefopt.losses._terms import Nll, add_cost, answer_nll, log1mexp, logistic, with_rewards
from prefopt.types import Applies, LossOutput, PairLogps, Range, Reads


@checked
def orpo(
    policy: Annotated[PairLogps, Reads("length"), Applies("with_nll")],
    *,
    mean_chosen_length: Tensor | None = None,
    lam: Annotated[float, Range(ge=0)] = 0.1,
    nll: Nll = "sequence",
) -> LossOutput:
    """Pay the chosen answer's NLL plus lam times -log sigmoid of the log odds ratio of the pair.

    Starts from a base model: one stage in place of fine-tuning and preference optimization, without a
    reference. The odds ratio weighs little while answers are unlikely, so the likelihood term leads and
    the learning rate is that of fine-tuning (5e-6 to 8e-6 in the paper), not that of DPO.

    When:
        there is no memory for a reference
        one stage has to do, from a base model

    Args:
        policy: P pairs under the model being trained.
        mean_chosen_length: [] tokens; for "batch_token".
        lam: weight of the odds-ratio term; 0 is supervised fine-tuning on the chosen answers.
        nll: "sequence" averages over the answer's own tokens; "batch_token" over the tokens of the step.

    Returns:
        Loss [P]; rewards [P], lam times the mean log-prob of each answer; metrics ``nll`` [P] and
        ``log_odds_ratio`` [P]. A mean log-prob of 0, whose odds are infinite, is taken for the largest
        number below 0.

    Formula:
        a = log-prob / length, for each answer
        r = a_chosen - log(1 - exp(a_chosen)) - (a_rejected - log(1 - exp(a_rejected)))
        loss = -a_chosen - lam * log sigmoid(r)

    Raises:
        ValueError: "batch_token" without ``mean_chosen_length``.

    Source:
        Hong, Lee and Thorne, "ORPO: Monolithic Preference Optimization without Reference Model", 2024,
        arXiv 2403.07691, equations 4 to 7. The likelihood term covers the answer; TRL's covers the
        prompt as well, and so does the authors' code unless told to leave it out.
    """
    chosen = policy.chosen.total / policy.chosen.length
    rejected = policy.rejected.total / policy.rejected.length
    log_odds_ratio = (chosen - log1mexp(chosen)) - (rejected - log1mexp(rejected))
    loss = lam * logistic(log_odds_ratio)
    cost = answer_nll(policy.chosen, nll, mean_chosen_length)
    output = with_rewards(loss, chosen, rejected, lam, log_odds_ratio=log_odds_ratio)
    return add_cost(output, cost, nll=cost)
