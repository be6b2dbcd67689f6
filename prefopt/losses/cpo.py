"""Contrastive preference optimization: DPO without a reference, plus likelihood of the chosen answer."""

from __future__ import annotations

from typing import Annotated, Literal

from torch import Tensor

from prefopt.losses._door import checked
from prefopt.losses._terms import Nll, add_cost, answer_nll, linked, squared, with_rewards
from prefopt.types import Applies, LossOutput, OnlyWith, PairLogps, Range, Reads

ContrastLink = Literal["logistic", "hinge", "ipo"]


@checked
def cpo(
    policy: Annotated[PairLogps, Reads("length"), Applies("with_nll")],
    *,
    mean_chosen_length: Tensor | None = None,
    beta: Annotated[float, Range(gt=0)] = 0.1,
    alpha: Annotated[float, Range(ge=0)] = 1.0,
    label_smoothing: Annotated[float, Range(ge=0, lt=0.5), OnlyWith("link", "logistic")] = 0.0,
    link: ContrastLink = "logistic",
    nll: Nll = "sequence",
) -> LossOutput:
    """Pay -log sigmoid of the difference of log-probs, plus alpha times the chosen answer's NLL.

    DPO at the memory of supervised fine-tuning: no reference pass, and the likelihood term keeps the
    policy at the chosen answers instead. Made for machine translation, where chosen answers are good
    enough to imitate. Sums favour short answers; ``with_nll(simpo)`` is the form with means (CPO-SimPO).
    Not conservative DPO (cDPO), which is ``dpo`` with ``label_smoothing``.

    When:
        there is no memory for a reference
        one stage has to do, from a base model

    Args:
        policy: P pairs under the model being trained.
        mean_chosen_length: [] tokens; for "batch_token".
        beta: reward per nat; for "ipo" it sets the difference asked for, 1 / (2 beta) nats per token.
        alpha: weight of the likelihood term.
        label_smoothing: probability that a label is flipped; for "logistic".
        link: "logistic"; "hinge", which leaves a pair alone once its margin is 1; or "ipo", which holds the
            difference of log-probs per token to a target.
        nll: "sequence" averages over the answer's own tokens; "batch_token" over the tokens of the step.

    Returns:
        Loss [P]; rewards [P], beta times the log-prob of each answer, per token for "ipo"; metric ``nll`` [P].

    Formula:
        m = beta * (chosen - rejected), sums of log-probs; a = log-prob / length; e = label_smoothing
        loss = f + alpha * (-a_chosen)
        f = -(1 - e) * log sigmoid(m) - e * log sigmoid(-m)      (logistic)
        f = max(0, 1 - m)                                        (hinge)
        f = (a_chosen - a_rejected - 1 / (2 * beta))^2           (ipo)

    Raises:
        ValueError: "batch_token" without ``mean_chosen_length``.

    Source:
        Xu, Sharaf, Chen, Tan, Shen, Van Durme, Murray and Kim, "Contrastive Preference Optimization:
        Pushing the Boundaries of LLM Performance in Machine Translation", 2024, arXiv 2401.08417,
        equations 3 to 5; links as in the authors' code (CPO_SIMPO) and TRL, which ignore the smoothing with
        a warning for all but "logistic". Both average the likelihood term over the tokens of a batch:
        "batch_token" here, over the whole optimizer step.
    """
    chosen, rejected = policy.chosen.total, policy.rejected.total
    if link == "ipo":
        chosen, rejected = chosen / policy.chosen.length, rejected / policy.rejected.length
        loss = squared(chosen - rejected, 1.0 / (2.0 * beta))
    else:
        loss = linked(beta * (chosen - rejected), link, label_smoothing)
    cost = answer_nll(policy.chosen, nll, mean_chosen_length)
    return add_cost(with_rewards(loss, chosen, rejected, beta), cost, alpha, nll=cost)
