"""From loss to loss: add a likelihood term, discount tails, weight pairs, mix, and close settings.

Compositions nest and never merge: ``with_nll(weighted(dpo))`` weights the preference term only,
``weighted(with_nll(dpo))`` weights both. By hand, for one pair of one token an answer:

>>> import torch
>>> from prefopt.losses import bound, dpo, mixed, with_nll
>>> from prefopt.types import PairLogps, SeqLogps
>>> def pair(chosen, rejected):
...     return PairLogps(*(SeqLogps(torch.tensor([nats]), (1,)) for nats in (chosen, rejected)))
>>> policy, reference = pair(-1.0, -4.0), pair(-2.0, -3.0)

Log-ratios -1 + 2 = 1 and -4 + 3 = -1, at beta 0.5 a margin of 0.5 * (1 + 1) = 1: log(1 + e^-1) = 0.3133.

>>> half = bound(dpo, beta=0.5, label_smoothing=0.0)
>>> half(policy, reference).loss
tensor([0.3133])

The chosen answer's one token costs 1 nat more, at alpha 0.2: 0.3133 + 0.2 * 1 = 0.5133.

>>> with_nll(half, alpha=0.2)(policy, reference).loss
tensor([0.5133])

The sum of both, the second at a quarter: 0.3133 + 0.25 * 0.5133 = 0.4416.

>>> mixed([half, with_nll(half, alpha=0.2)], [1.0, 0.25])(policy, reference).loss
tensor([0.4416])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from inspect import Parameter, Signature
from typing import Annotated, Any

from torch import Tensor

from prefopt.errors import RecipeError
from prefopt.losses._compose import Composed, Given, admit, arguments_of, compose, picklable, union
from prefopt.losses._contract import Loss, contract_of, name_of, signature_of
from prefopt.losses._settings import Setting, check_settings
from prefopt.losses._terms import Nll, add_cost, answer_nll, desensitize, sampling_weight, scale_loss, stop
from prefopt.structures import STRUCTURES
from prefopt.types import LossOutput, Range, Stats

MIX_WEIGHT = Setting(default=1.0, type=float, range=Range(gt=0))
"""What the weight of a loss in ``mixed`` may be."""


@picklable
def with_nll(loss: Loss, *, alpha: Annotated[float, Range(ge=0)] = 1.0, nll: Nll = "sequence") -> Loss:
    """Add alpha times the negative log-likelihood of the chosen answer, in nats per token.

    Holds up the chosen answer's own likelihood, which a margin alone may let fall. Applied to a loss
    over pairs; weights and tail discounts inside ``loss`` do not reach the added term.

    When:
        the chosen answers lose likelihood too

    Args:
        loss: a loss over pairs.
        alpha: weight of the added term; 1 in iterative reasoning PO, 0.2 in Llama 3, 0.005 in
            regularised PO.
        nll: "sequence" averages over the answer's own tokens; "batch_token" over the tokens of the
            optimizer step, and then needs ``mean_chosen_length``.

    Returns:
        A loss that also reports the metric ``nll`` [P].

    Formula:
        loss + alpha * (-log-prob of chosen / length)

    Raises:
        RecipeError: ``loss`` is not over pairs, already contains this term, or a setting is illegal.

    Source:
        Pang, Yuan, Cho, He, Sukhbaatar and Weston, "Iterative Reasoning Preference Optimization", 2024,
        arXiv 2404.19733; Liu et al., 2024, arXiv 2405.16436.
    """
    settings = admit(with_nll, loss, alpha=alpha, nll=nll)
    alpha = settings["alpha"]
    signature = signature_of(loss)
    needs_length = Parameter("mean_chosen_length", Parameter.KEYWORD_ONLY, annotation=Tensor)
    added = [needs_length] if nll == "batch_token" else []

    def pay(given: Given) -> LossOutput:
        cost = answer_nll(given["policy"].chosen, nll, given.get("mean_chosen_length"))
        return add_cost(loss(**arguments_of(given, signature)), cost, alpha, nll=cost)

    return compose(with_nll, loss, union("with_nll", [signature], added), pay)


@picklable
def length_desensitized(
    loss: Loss, *, alpha: Annotated[float, Range(ge=0, le=1)] = 0.5, apply_to_reference: bool = True
) -> Loss:
    """Count tokens beyond the length of the pair's shorter answer at ``alpha``.

    Replaces ``total`` and nothing else: lengths, means and likelihood terms stay what they are.

    When:
        answers grow longer and longer

    Args:
        loss: a loss over pairs.
        alpha: weight of the longer answer's tail; 1 changes nothing, 0 cuts it off.
        apply_to_reference: reweight the reference's tokens too.

    Returns:
        A loss over the same pairs.

    Formula:
        S = sum of log-probs up to l + alpha * sum beyond l, l = min(length_chosen, length_rejected)

    Raises:
        RecipeError: ``loss`` is not over pairs, already contains this transform, has no reference to
            leave alone, or a setting is illegal.

    Source:
        Liu, Bai, Han, Weng, Xu, Cao, Wang and Cai, 2024, arXiv 2409.06411.
    """
    settings = admit(length_desensitized, loss, alpha=alpha, apply_to_reference=apply_to_reference)
    alpha = settings["alpha"]
    if not apply_to_reference and not contract_of(loss).needs_reference:
        raise RecipeError(
            f"length_desensitized.apply_to_reference: {name_of(loss)} has no reference. Remove the setting."
        )
    names = ("policy", "reference") if apply_to_reference else ("policy",)
    signature = signature_of(loss)

    def pay(given: Given) -> LossOutput:
        return loss(**{k: desensitize(v, alpha) if k in names else v for k, v in given.items()})

    return compose(length_desensitized, loss, union("length_desensitized", [signature]), pay)


@picklable
def weighted(loss: Loss, *, max_weight: Annotated[float, Range(gt=0)] = 1.0) -> Loss:
    """Multiply each pair's loss by the likelihood that the policy samples both its answers.

    The weight is detached and multiplies exactly what ``loss`` pays; rewards stay as they are.

    When:
        answers come from other models than the policy

    Args:
        loss: a loss over pairs.
        max_weight: cap of the weight.

    Returns:
        A loss that asks for the stat ``log_sum_p2`` and reports the metric ``weight`` [P].

    Formula:
        A = mean over tokens of (log p(token) - log sum_v p(v)^2), for each answer
        min(max_weight, exp(A_chosen + A_rejected)) * loss

    Raises:
        RecipeError: ``loss`` is not over pairs, is already weighted, or a setting is illegal.

    Source:
        Zhou et al., "WPO: Enhancing RLHF with Weighted Preference Optimization", 2024,
        arXiv 2406.11827.
    """
    max_weight = admit(weighted, loss, max_weight=max_weight)["max_weight"]
    signature = signature_of(loss)

    def pay(given: Given) -> LossOutput:
        return scale_loss(loss(**given), sampling_weight(given["policy"], max_weight))

    return compose(weighted, loss, union("weighted", [signature], marks=[Stats("log_sum_p2")]), pay)


@picklable
def mixed(losses: Sequence[Loss], weights: Sequence[float]) -> Loss:
    """Add up several losses of one structure, each times its weight.

    The rewards are those of the first loss that has any, for rewards of different losses are in
    different units. Every loss is reported as the metric ``NAME/loss`` [U], its own metrics as
    ``NAME/METRIC``; a second loss of one name is called ``NAME_2``.

    Args:
        losses: at least one loss; open settings of one name in two of them must be closed, by ``bound`` or by
            ``functools.partial``.
        weights: one number above 0 per loss.

    Returns:
        A loss with the union of what its parts need.

    Formula:
        weights[0] * losses[0] + weights[1] * losses[1] + ...

    Raises:
        RecipeError: no loss, unequal numbers, an illegal weight, different structures, or open settings
            that clash.
    """
    if not losses or len(losses) != len(weights):
        raise RecipeError(
            f"mixed: {len(losses)} losses but {len(weights)} weights. Give one weight for each loss."
        )
    weights = [MIX_WEIGHT.check(weight, f"mixed.weights[{i}]") for i, weight in enumerate(weights)]
    structures = {name_of(loss): contract_of(loss).structure for loss in losses}
    if len(set(structures.values())) > 1:
        shown = ", ".join(
            f"{name} learns from {STRUCTURES[kind].learns_from}" for name, kind in structures.items()
        )
        raise RecipeError(f"mixed: {shown}. Mix losses of one structure; with_nll adds likelihood to pairs.")
    losses = [_closed(loss) for loss in losses]
    signatures = [signature_of(loss) for loss in losses]
    labels = _labels([name_of(loss) for loss in losses])

    def pay(given: Given) -> LossOutput:
        outputs = [loss(**arguments_of(given, sig)) for loss, sig in zip(losses, signatures, strict=True)]
        return _add_up(outputs, weights, labels)

    terms = [f"{w:g} * {name_of(loss)}" for w, loss in zip(weights, losses, strict=True)]
    return Composed(f"mixed({', '.join(terms)})", mixed.__doc__ or "", union("mixed", signatures), pay)


@picklable
def bound(loss: Loss, **settings: Any) -> Loss:
    """Close settings of ``loss``: they vanish from its signature and keep these values.

    Raises:
        RecipeError: an unknown setting or an illegal value.
    """
    contract = contract_of(loss)
    checked = check_settings(contract.name, contract.settings, settings, contract.name)
    closed = {name: checked[name] for name in settings}
    signature = signature_of(loss)
    left = [p for name, p in signature.parameters.items() if name not in closed]

    def pay(given: Given) -> LossOutput:
        return loss(**given, **closed)

    return Composed(contract.name, loss.__doc__ or "", Signature(left, return_annotation=LossOutput), pay)


def _closed(loss: Loss) -> Loss:
    """Return a ``functools.partial`` of a loss as the loss with those settings closed."""
    if not isinstance(loss, partial):
        return loss
    known = contract_of(loss).settings
    settings = {name: value for name, value in loss.keywords.items() if name in known}
    handed = {name: value for name, value in loss.keywords.items() if name not in known}
    closed = bound(loss.func, **settings)
    return partial(closed, **handed) if handed else closed


def _labels(names: Sequence[str]) -> list[str]:
    counts: dict[str, int] = {}
    labels = []
    for name in names:
        counts[name] = counts.get(name, 0) + 1
        labels.append(name if counts[name] == 1 else f"{name}_{counts[name]}")
    return labels


def _add_up(outputs: Sequence[LossOutput], weights: Sequence[float], labels: Sequence[str]) -> LossOutput:
    total = weights[0] * outputs[0].loss
    for weight, output in zip(weights[1:], outputs[1:], strict=True):
        total = total + weight * output.loss
    metrics: dict[str, Tensor] = {}
    for label, output in zip(labels, outputs, strict=True):
        metrics[f"{label}/loss"] = stop(output.loss)
        metrics.update({f"{label}/{name}": value for name, value in output.metrics.items()})
    rewarded = next((output for output in outputs if output.chosen_reward is not None), outputs[0])
    carried = {name: value for output in outputs for name, value in output.carried.items()}
    return replace(rewarded, loss=total, metrics=metrics, carried=carried)
