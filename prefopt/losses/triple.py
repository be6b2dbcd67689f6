"""Triple preference optimization (TRL's TPO): a gold answer to imitate beside the pair."""

from __future__ import annotations

from typing import Annotated

from prefopt.losses._terms import Norm, add_cost, answer_nll, logistic, with_rewards
from prefopt.types import LossOutput, PairLogps, Range, Reads, Roles


def triple(
    policy: Annotated[PairLogps, Reads("length"), Roles("gold")],
    *,
    beta: Annotated[float, Range(gt=0)] = 0.01,
    alpha: Annotated[float, Range(ge=0)] = 1.0,
    gamma: Annotated[float, Range(ge=0)] = 0.0,
    label_smoothing: Annotated[float, Range(ge=0, lt=0.5)] = 0.0,
    norm: Norm = "sum",
) -> LossOutput:
    """Pay -log sigmoid of the difference of log-probs, plus alpha times the NLL of a gold answer.

    For rows with three answers: the best one is imitated, the other two are compared, so the policy is
    not asked to imitate a chosen answer that is merely the better of two. One stage from a base model,
    without a reference. ``norm: mean`` with a ``gamma`` is the paper's length-controlled TPO-L. Not tree
    PO (``tree``) nor test-time PO, also written TPO.

    When:
        each row has a gold answer beside the two

    Args:
        policy: P pairs under the model being trained, with a gold answer each.
        beta: reward per nat (per token for "mean").
        alpha: weight of the gold answer's NLL.
        gamma: margin of rewards at which a pair costs log 2.
        label_smoothing: probability that a label is flipped.
        norm: "mean" compares log-probs per token; "sum" does not.

    Returns:
        Loss [P]; rewards [P], beta times the log-prob in the same norm; metric ``gold_nll`` [P].

    Formula:
        s = log-prob / length^[norm = mean], for each answer
        loss = -log sigmoid(beta * (s_chosen - s_rejected) - gamma) + alpha * (-gold / length)

    Source:
        Saeidi, Verma, RRV and Baral, "Triple Preference Optimization: Achieving Better Alignment with
        Less Data in a Single Step Optimization", 2024, arXiv 2405.16681. The authors' code and TRL
        average the likelihood term over the gold tokens of a batch; here each gold answer counts alike.
    """
    chosen, rejected = policy.chosen.total, policy.rejected.total
    if norm == "mean":
        chosen, rejected = chosen / policy.chosen.length, rejected / policy.rejected.length
    loss = logistic(beta * (chosen - rejected) - gamma, label_smoothing)
    cost = answer_nll(policy.others["gold"], "sequence")
    return add_cost(with_rewards(loss, chosen, rejected, beta), cost, alpha, gold_nll=cost)
