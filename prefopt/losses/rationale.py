"""Preference optimization with rationales: the policy also learns why the chosen answer is better."""

from __future__ import annotations

from typing import Annotated, Literal

import torch.nn.functional as F
from torch import Tensor

from prefopt.losses._compose import Given, admit, arguments_of, compose, picklable, union
from prefopt.losses._contract import Loss, signature_of
from prefopt.losses._door import checked
from prefopt.losses._terms import Norm, add_cost
from prefopt.losses.dpo import dpo
from prefopt.types import Applies, LossOutput, PairLogps, Range, Reads, Roles, SeqLogps

RationaleLink = Literal["logistic", "nll"]


@checked
def rationale(
    policy: Annotated[PairLogps, Reads("length"), Roles("rationale"), Applies("with_rationale")],
    reference: PairLogps,
    *,
    beta: Annotated[float, Range(gt=0)] = 0.1,
    gamma: Annotated[float, Range(ge=0)] = 0.1,
    link: RationaleLink = "logistic",
    norm: Norm = "sum",
) -> LossOutput:
    """Pay the DPO loss plus a likelihood term of a text that says why the chosen answer is better.

    For data with an explanation for each pair, written by a person or a model after the prompt and both
    answers. Needs fewer pairs for the same result where the explanations are good. This is
    ``with_rationale(dpo)``. Its authors' code calls it rdpo; it is neither ``rdpo_length`` (R-DPO) nor
    ``robust`` (robust DPO).

    When:
        each row has a rationale of the choice

    Args:
        policy: P pairs under the model being trained, with a rationale each.
        reference: the same P pairs under the reference; their rationales are not read.
        beta: reward per nat of log-ratio.
        gamma: weight of the rationale's log-prob.
        link: "logistic" pays -log sigmoid of it, as the authors' code does; "nll" its negative, as the
            paper writes.
        norm: "sum" over the rationale's tokens, or their "mean".

    Returns:
        Loss [P]; rewards [P], beta times the log-ratio of each answer; metric ``rationale_cost`` [P].

    Formula:
        s = log-prob of the rationale / length^[norm = mean]
        loss = dpo - log sigmoid(gamma * s)     (logistic)
        loss = dpo - gamma * s                  (nll)

    Source:
        Just, Jin, Sahu, Phan and Jia, "Data-Centric Human Preference Optimization with Rationales",
        2024, arXiv 2407.14477; ``RDPOTrainer`` in the authors' code. On the large negative sums that it
        meets, "logistic" is nearly "nll"; on means near 0 its gradient is half as large.
    """
    output = dpo(policy, reference, beta=beta)
    return _add(output, policy.others["rationale"], gamma, link, norm)


@picklable
def with_rationale(
    loss: Loss,
    *,
    gamma: Annotated[float, Range(ge=0)] = 0.1,
    link: RationaleLink = "logistic",
    norm: Norm = "sum",
) -> Loss:
    """Add a likelihood term of a text that says why the chosen answer is better.

    On ``orpo`` with ``norm: mean`` and gamma 1 this is the authors' RORPO, and with ``link: nll`` their
    simple RORPO.

    When:
        each row has a rationale of the choice

    Args:
        loss: a loss over pairs.
        gamma: weight of the rationale's log-prob.
        link: "logistic" pays -log sigmoid of it, as the authors' code does; "nll" its negative, as the
            paper writes.
        norm: "sum" over the rationale's tokens, or their "mean".

    Returns:
        A loss whose pairs need a rationale each, and that reports the metric ``rationale_cost`` [P].

    Formula:
        s = log-prob of the rationale / length^[norm = mean]
        loss - log sigmoid(gamma * s)     (logistic)
        loss - gamma * s                  (nll)

    Raises:
        RecipeError: ``loss`` is not over pairs, already contains this term, or a setting is illegal.

    Source:
        Just, Jin, Sahu, Phan and Jia, "Data-Centric Human Preference Optimization with Rationales",
        2024, arXiv 2407.14477; ``RDPOTrainer`` and the RORPO trainers in the authors' code.
    """
    settings = admit(with_rationale, loss, gamma=gamma, link=link, norm=norm)
    signature = signature_of(loss)

    def pay(given: Given) -> LossOutput:
        output = loss(**arguments_of(given, signature))
        return _add(output, given["policy"].others["rationale"], **settings)

    marked = union("with_rationale", [signature], marks=[Roles("rationale")])
    return compose(with_rationale, loss, marked, pay)


def _add(output: LossOutput, answers: SeqLogps, gamma: float, link: RationaleLink, norm: Norm) -> LossOutput:
    logp: Tensor = answers.total if norm == "sum" else answers.mean
    cost = -F.logsigmoid(gamma * logp) if link == "logistic" else -gamma * logp
    return add_cost(output, cost, rationale_cost=cost)
