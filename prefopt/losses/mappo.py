"""MaPPO: the rejected answer counts as much as the data's scores say that it is worse."""

from __future__ import annotations

from dataclasses import replace
from inspect import Parameter
from typing import Annotated

from torch import Tensor

from prefopt.errors import RecipeError
from prefopt.losses._compose import Given, admit, arguments_of, compose, picklable, union
from prefopt.losses._contract import Loss, contract_of, signature_of
from prefopt.losses._door import checked
from prefopt.losses._terms import stop
from prefopt.losses.dpo import dpo
from prefopt.types import Applies, LossOutput, PairLogps, Range, Scale
from prefopt.types.checks import wide


@checked
def mappo(
    policy: Annotated[PairLogps, Applies("prior_scaled"), Scale("unit_gap")],
    reference: PairLogps,
    *,
    chosen_score: Tensor,
    rejected_score: Tensor,
    beta: Annotated[float, Range(gt=0)] = 0.1,
) -> LossOutput:
    """Pay the DPO loss with the rejected answer's log-ratio multiplied by the gap between the scores.

    For pairs scored by a reward model, above all those sampled from the policy itself, where the
    rejected answer is often nearly as good as the chosen one and DPO pushes both down. No setting of its
    own: the scores, mapped to [0, 1] in the data, say how bad the rejected answer is. This is
    ``prior_scaled(dpo)``; ``flex`` uses one factor for all pairs.

    When:
        each row has a score of each answer
        rejected answers pull too much

    Args:
        policy: P pairs under the model being trained.
        reference: the same P pairs under the reference.
        chosen_score: [P] score of each chosen answer, from 0 to 1.
        rejected_score: [P] score of each rejected answer, from 0 to 1.
        beta: reward per nat of log-ratio.

    Returns:
        Loss [P]; rewards [P], beta times the log-ratio, times the gap for the rejected answer; metric
        ``prior_gap`` [P]. The gap is clamped to [0, 1], so scores on a wider scale make this DPO;
        ``prefopt check`` warns where most pairs are.

    Formula:
        gap = chosen_score - rejected_score, h = policy - reference, for each answer
        loss = -log sigmoid(beta * (h_chosen - gap * h_rejected))

    Source:
        Lan, Zhang, Wang, Zhang, Zhang, Wei, Pan, Zhang, Han and Brinton, "MaPPO: Maximum a Posteriori
        Preference Optimization with Prior Knowledge", 2025, arXiv 2507.21183.
    """
    gap = _prior_gap(chosen_score, rejected_score)
    return _with_gap(dpo(_scale_rejected(policy, gap), _scale_rejected(reference, gap), beta=beta), gap)


@picklable
def prior_scaled(loss: Loss) -> Loss:
    """Multiply the rejected answer's log-probs by the gap between the data's scores.

    MaPPO on any loss over pairs, such as IPO, SimPO or CPO. Applied to policy and reference alike and
    token by token, so sums, means and tail discounts inside ``loss`` all see it; likelihood terms of the
    chosen answer do not. The scores have to be mapped to [0, 1] in the data.

    When:
        each row has a score of each answer
        rejected answers pull too much

    Args:
        loss: a loss over pairs that reads no per-token statistics.

    Returns:
        A loss that asks for ``chosen_score`` and ``rejected_score`` and reports the metric ``prior_gap``
        [P]. The gap is clamped to [0, 1]; ``prefopt check`` warns where most pairs are.

    Formula:
        gap = chosen_score - rejected_score
        loss with the log-probs of the rejected answer multiplied by gap

    Raises:
        RecipeError: ``loss`` is not over pairs, already contains this transform, or reads statistics.

    Source:
        Lan, Zhang, Wang, Zhang, Zhang, Wei, Pan, Zhang, Han and Brinton, "MaPPO: Maximum a Posteriori
        Preference Optimization with Prior Knowledge", 2025, arXiv 2507.21183, its use as a plugin.
    """
    admit(prior_scaled, loss)
    contract = contract_of(loss)
    if contract.policy_stats or contract.reference_stats:
        raise RecipeError(
            f"prior_scaled: {contract.name} compares log-probs with statistics of the same tokens, and would "
            f"see scaled ones. List prior_scaled before the transform that does so."
        )
    signature = signature_of(loss)
    added = [
        Parameter(n, Parameter.KEYWORD_ONLY, annotation=Tensor) for n in ("chosen_score", "rejected_score")
    ]

    def pay(given: Given) -> LossOutput:
        gap = _prior_gap(given["chosen_score"], given["rejected_score"])
        scaled = {
            name: _scale_rejected(value, gap) if isinstance(value, PairLogps) else value
            for name, value in arguments_of(given, signature).items()
        }
        return _with_gap(loss(**scaled), gap)

    marks = [Scale("unit_gap")]
    return compose(prior_scaled, loss, union("prior_scaled", [signature], added, marks), pay)


def _prior_gap(chosen_score: Tensor, rejected_score: Tensor) -> Tensor:
    return stop((chosen_score - rejected_score).clamp(0.0, 1.0))


def _with_gap(output: LossOutput, gap: Tensor) -> LossOutput:
    return replace(output, metrics={**output.metrics, "prior_gap": gap})


def _scale_rejected(pair: PairLogps, gap: Tensor) -> PairLogps:
    """Multiply every log-prob of each rejected answer by its pair's ``gap`` [P]."""
    rejected, total = pair.rejected, pair.rejected.replaced_total
    tokens = wide(rejected.tokens) * gap.index_select(0, rejected.sequence_of)
    scaled = replace(rejected, tokens=tokens, replaced_total=None if total is None else total * gap)
    return replace(pair, rejected=scaled)
