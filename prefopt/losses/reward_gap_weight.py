"""OPTune's weight: pairs count by how far apart their scores are."""

from __future__ import annotations

from inspect import Parameter
from typing import Annotated

from torch import Tensor

from prefopt.losses._compose import Given, admit, arguments_of, compose, picklable, union
from prefopt.losses._contract import Loss, signature_of
from prefopt.losses._terms import scale_loss, stop
from prefopt.types import LossOutput, Range


@picklable
def reward_gap_weight(loss: Loss, *, scale: Annotated[float, Range(gt=0)] = 1.0) -> Loss:
    """Multiply each pair's loss by the sigmoid of the gap between the data's scores.

    For online rounds, where pairs are sampled and scored afresh: pairs that the reward model tells
    apart clearly count up to once, ties half. The choice of prompts to sample again, the other half of
    OPTune, is made with the data.

    When:
        each row has a score of each answer

    Args:
        loss: a loss over pairs.
        scale: weight's log-odds per unit of score; the paper's second beta.

    Returns:
        A loss that asks for ``chosen_score`` and ``rejected_score`` and reports the metric
        ``reward_gap_weight`` [P].

    Formula:
        sigmoid(scale * (chosen_score - rejected_score)) * loss

    Raises:
        RecipeError: ``loss`` is not over pairs, is already weighted by this, or a setting is illegal.

    Source:
        Chen et al., "OPTune: Efficient Online Preference Tuning", 2024, arXiv 2406.07657. That a gap of
        rewards, scaled by a second beta, multiplies the DPO loss is from reviews of the paper; the
        sigmoid and the default are not checked against it.
    """
    scale = admit(reward_gap_weight, loss, scale=scale)["scale"]
    signature = signature_of(loss)
    added = [
        Parameter(n, Parameter.KEYWORD_ONLY, annotation=Tensor) for n in ("chosen_score", "rejected_score")
    ]

    def pay(given: Given) -> LossOutput:
        weight = stop((scale * (given["chosen_score"] - given["rejected_score"])).sigmoid())
        return scale_loss(loss(**arguments_of(given, signature)), weight, name="reward_gap_weight")

    return compose(reward_gap_weight, loss, union("reward_gap_weight", [signature], added), pay)
