"""Other f-divergences in place of the reverse KL of DPO."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from prefopt.errors import RecipeError
from prefopt.losses._compose import RESUMMING, Given, admit, compose, picklable, union
from prefopt.losses._contract import Loss, contract_of, signature_of
from prefopt.losses._terms import Divergence, reshape_ratio
from prefopt.types import LossOutput, OnlyWith, Range


@picklable
def f_div(
    loss: Loss,
    *,
    divergence: Divergence = "alpha",
    alpha: Annotated[float, Range(gt=0, lt=1), OnlyWith("divergence", "alpha")] = 0.5,
) -> Loss:
    """Hold the policy to the reference by another f-divergence than the reverse KL.

    The reverse KL of DPO seeks modes; towards the forward KL answers stay more varied, at some cost in
    reward. "js" is mild, never overflows, and starts at half the slope, so it takes twice the beta; "alpha"
    leads from the reverse KL (near 0) to the forward KL (near 1); "forward_kl" is steep: a log-ratio of
    -20 counts as -e^20. A transform and not a loss of its own, because any loss that compares two
    log-ratios takes it: ``dpo``, ``robust``, ``hinge``, ``convex``, ``ipo``, ``exo_pref``, ``discopop`` and
    more. On losses that pay each answer by itself (``apo_zero``, ``bco_pair``, ...) it works, but no
    paper derives it.

    When:
        answers lose their variety

    Args:
        loss: a loss over pairs that compares with a reference.
        divergence: which one; "reverse_kl" changes nothing.
        alpha: order of "alpha", as in the paper: the score is (1 - exp(-alpha * h)) / alpha. TRL's
            ``f_alpha_divergence_coef`` is 1 - alpha.

    Returns:
        A loss over the same pairs, whose rewards are in scores in place of log-ratios. Exponents are
        clamped at 40.

    Formula:
        h = policy - reference, for each answer, is replaced by f'(exp(h)) - f'(1):
        reverse_kl  h
        forward_kl  1 - exp(-h)
        js          log sigmoid(h) + log 2
        alpha       (1 - exp(-alpha * h)) / alpha

    Raises:
        RecipeError: ``loss`` is not over pairs, has no reference, already contains this transform or,
            inside, a transform that sums tokens anew; or a setting is illegal.

    Source:
        Wang, Jiang, Yang, Liu and Chen, "Beyond Reverse KL: Generalizing Direct Preference Optimization
        with Diverse Divergence Constraints", 2023, arXiv 2309.16240; f' as in the authors' code, up to
        constants that cancel in a difference and are chosen here so that a score of 0 means no change.
    """
    settings = admit(f_div, loss, divergence=divergence, alpha=alpha)
    divergence, alpha = settings["divergence"], settings["alpha"]
    contract = contract_of(loss)
    if not contract.needs_reference:
        raise RecipeError(f"f_div: {contract.name} has no reference to diverge from. Remove f_div.")
    undoing = next((name for name in RESUMMING if name in contract.applies), None)
    if undoing is not None:
        raise RecipeError(
            f"f_div: {contract.name} sums tokens anew, which would undo it. Apply f_div before {undoing}."
        )
    signature = signature_of(loss)

    def pay(given: Given) -> LossOutput:
        policy, reference = given["policy"], given["reference"]
        chosen = reshape_ratio(policy.chosen, reference.chosen, divergence, alpha)
        rejected = reshape_ratio(policy.rejected, reference.rejected, divergence, alpha)
        return loss(**{**given, "policy": replace(policy, chosen=chosen, rejected=rejected)})

    return compose(f_div, loss, union("f_div", [signature]), pay)
