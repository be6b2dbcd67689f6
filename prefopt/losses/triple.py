"""Triple preference optimization (TRL's TPO): a gold answer to imitate beside the pair."""

from __future__ import annotations

from typing import Annotated

from prefopt.losses._door import checked
from prefopt.losses._terms import Norm, add_cost, answer_nll, linked, squared, with_rewards
from prefopt.losses.cpo import ContrastLink
from prefopt.types import LossOutput, OnlyWith, PairLogps, Range, Reads, Roles


@checked
def triple(
    policy: Annotated[PairLogps, Reads("length"), Roles("gold")],
    *,
    beta: Annotated[float, Range(gt=0)] = 0.01,
    alpha: Annotated[float, Range(ge=0)] = 1.0,
    gamma: Annotated[float, Range(ge=0), OnlyWith("link", "logistic", "hinge")] = 0.0,
    label_smoothing: Annotated[float, Range(ge=0, lt=0.5), OnlyWith("link", "logistic")] = 0.0,
    link: ContrastLink = "logistic",
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
        gamma: margin of rewards beyond which the link counts; not for "ipo", which has a target of its own.
        label_smoothing: probability that a label is flipped; for "logistic".
        link: "logistic"; "hinge", which leaves a pair alone once its margin is 1 beyond ``gamma``; or "ipo",
            which holds the difference of the log-probs to 1 / (2 beta); its sources use it with ``norm: mean``.
        norm: "mean" compares log-probs per token; "sum" does not.

    Returns:
        Loss [P]; rewards [P], beta times the log-prob in the same norm; metric ``gold_nll`` [P].

    Formula:
        s = log-prob / length^[norm = mean], for each answer
        m = beta * (s_chosen - s_rejected) - gamma, e = label_smoothing
        loss = f + alpha * (-gold / length)
        f = -(1 - e) * log sigmoid(m) - e * log sigmoid(-m)     (logistic)
        f = max(0, 1 - m)                                       (hinge)
        f = (s_chosen - s_rejected - 1 / (2 * beta))^2          (ipo)

    Source:
        Saeidi, Verma, RRV and Baral, "Triple Preference Optimization: Achieving Better Alignment with
        Less Data in a Single Step Optimization", 2024, arXiv 2405.16681; links as in the authors' code and
        TRL, which ignore the smoothing for all but "logistic". Both average the likelihood term over the
        gold tokens of a batch; here each gold answer counts alike.
    """
    chosen, rejected = policy.chosen.total, policy.rejected.total
    if norm == "mean":
        chosen, rejected = chosen / policy.chosen.length, rejected / policy.rejected.length
    if link == "ipo":
        loss = squared(chosen - rejected, 1.0 / (2.0 * beta))
    else:
        loss = linked(beta * (chosen - rejected) - gamma, link, label_smoothing)
    cost = answer_nll(policy.others["gold"], "sequence")
    return add_cost(with_rewards(loss, chosen, rejected, beta), cost, alpha, gold_nll=cost)
