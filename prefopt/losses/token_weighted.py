"""Count each token at a weight of its own, in any loss."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from prefopt.errors import RecipeError
from prefopt.losses._compose import Given, admit, compose, picklable, union
from prefopt.losses._contract import Loss, contract_of, signature_of
from prefopt.losses._terms import reweight
from prefopt.types import LabelledLogps, ListLogps, LossOutput, PairLogps, SeqLogps, Stats

Units = PairLogps | LabelledLogps | ListLogps

_STATS = {"data": "weight", "activations": "activation"}
"""The stat that holds the weights, by where they come from."""


@picklable
def token_weighted(loss: Loss, *, source: Literal["data", "activations"] = "data") -> Loss:
    """Count each token's log-prob at its weight, under policy and reference alike.

    For data that says how much single tokens matter (an importance weight, a step of a solution), or for
    weights from the reference's activations, as in ``mapo``. Replaces ``total`` and, where ``loss`` reads
    it, the divergence; lengths, means and likelihood terms stay what they are. Tokens of weight 0 in the
    data need no transform: they are not scored at all.

    When:
        each row has weights of tokens or turns

    Args:
        loss: a loss over pairs, labelled answers or lists.
        source: "data" takes the weights of the rows, 1 for rows without; "activations" weighs a token by
            how strongly the reference's layers respond where it is predicted, from 0 to 1 within its answer.

    Returns:
        A loss over the same units, which asks for the stat ``weight`` or ``activation``.

    Formula:
        S = sum of weight * log-prob, for each answer

    Raises:
        RecipeError: ``loss`` reads tokens that this would not reach, already sums them anew, or has no
            reference to take activations from.

    Source:
        Per-token weights in a sequence log-ratio: Liu et al., "TIS-DPO: Token-level Importance Sampling for
        Direct Preference Optimization With Estimated Weights", 2024, arXiv 2410.04350; from activations:
        Christopoulou et al., 2024, arXiv 2410.05102.
    """
    settings = admit(token_weighted, loss, ("pairs", "labelled", "lists"), source=source)
    contract, stat = contract_of(loss), _STATS[settings["source"]]
    if source == "activations" and not contract.needs_reference:
        raise RecipeError(
            f"token_weighted.source: {contract.name} has no reference to take activations from. Use data."
        )
    signature = signature_of(loss)

    def pay(given: Given) -> LossOutput:
        policy: Units = given["policy"]
        return loss(**{name: _weigh(value, policy, stat) for name, value in given.items()})

    return compose(token_weighted, loss, union("token_weighted", [signature], marks=[Stats(stat)]), pay)


def _weigh(value: object, policy: Units, stat: str) -> object:
    """Reweight the answers of policy or reference, if that is what ``value`` is, by the policy's weights."""

    def weigh(answers: SeqLogps, own: SeqLogps) -> SeqLogps:
        return reweight(answers, own.stats[stat])

    if isinstance(value, PairLogps) and isinstance(policy, PairLogps):
        chosen, rejected = weigh(value.chosen, policy.chosen), weigh(value.rejected, policy.rejected)
        return replace(value, chosen=chosen, rejected=rejected)
    if isinstance(value, (LabelledLogps, ListLogps)) and not isinstance(policy, PairLogps):
        return replace(value, answers=weigh(value.answers, policy.answers))
    return value
