"""From loss to loss: add a likelihood term, discount tails, weight pairs, mix; and the parts to build more.

Compositions nest and never merge: ``with_nll(weighted(dpo))`` weights the preference term only,
``weighted(with_nll(dpo))`` weights both. What comes out is a loss like any other, with the union of
its parts' needs as its signature; a transform's own settings are fixed when it is applied, those of
the wrapped loss stay open until ``bound`` closes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from inspect import Parameter, Signature
from typing import Annotated, Any

from torch import Tensor

from prefopt.errors import RecipeError
from prefopt.losses._contract import (
    RESUMMING,
    Loss,
    Setting,
    base_of,
    check_settings,
    contract_of,
    is_handed_over,
    marks_of,
    name_of,
    settings_of,
    signature_of,
)
from prefopt.losses._terms import Nll, add_cost, answer_nll, desensitize, sampling_weight, scale_loss, stop
from prefopt.types import INPUTS, Applies, LossOutput, Prompts, Range, Refuses, Roles, Stats

Given = Mapping[str, Any]

MIX_WEIGHT = Setting(default=1.0, type=float, range=Range(gt=0))
"""What the weight of a loss in ``mixed`` may be."""


def with_nll(loss: Loss, *, alpha: Annotated[float, Range(ge=0)] = 1.0, nll: Nll = "sequence") -> Loss:
    """Add alpha times the negative log-likelihood of the chosen answer, in nats per token.

    Holds up the chosen answer's own likelihood, which a margin alone may let fall. Applied to a loss
    over pairs; weights and tail discounts inside ``loss`` do not reach the added term.

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
        return add_cost(loss(**pick(given, signature)), cost, alpha, nll=cost)

    return compose(with_nll, loss, union("with_nll", [signature], added), pay)


def length_desensitized(
    loss: Loss, *, alpha: Annotated[float, Range(ge=0, le=1)] = 0.5, apply_to_reference: bool = True
) -> Loss:
    """Count tokens beyond the length of the pair's shorter answer at ``alpha``.

    Replaces ``total`` and nothing else: lengths, means and likelihood terms stay what they are.

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


def weighted(loss: Loss, *, max_weight: Annotated[float, Range(gt=0)] = 1.0) -> Loss:
    """Multiply each pair's loss by the likelihood that the policy samples both its answers.

    The weight is detached and multiplies exactly what ``loss`` pays; rewards stay as they are.

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


def mixed(losses: Sequence[Loss], weights: Sequence[float]) -> Loss:
    """Add up several losses of one structure, each times its weight.

    The rewards are those of the first loss that has any, for rewards of different losses are in
    different units. Every loss is reported as the metric ``NAME/loss`` [U], its own metrics as
    ``NAME/METRIC``; a second loss of one name is called ``NAME_2``.

    Args:
        losses: at least one loss; open settings of one name in two of them must be closed by ``bound``.
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
        shown = ", ".join(f"{name} learns from {structure}" for name, structure in structures.items())
        raise RecipeError(f"mixed: {shown}. Mix losses of one structure; with_nll adds likelihood to pairs.")
    signatures = [signature_of(loss) for loss in losses]
    labels = _labels([name_of(loss) for loss in losses])

    def pay(given: Given) -> LossOutput:
        outputs = [loss(**pick(given, sig)) for loss, sig in zip(losses, signatures, strict=True)]
        return _add_up(outputs, weights, labels)

    terms = [f"{w:g} * {name_of(loss)}" for w, loss in zip(weights, losses, strict=True)]
    return _named_loss(f"mixed({', '.join(terms)})", mixed.__doc__ or "", union("mixed", signatures), pay)


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

    return _named_loss(contract.name, loss.__doc__ or "", Signature(left, return_annotation=LossOutput), pay)


def admit(
    transform: Callable[..., Loss], loss: Loss, structures: Sequence[str] = ("pairs",), **settings: Any
) -> dict[str, Any]:
    """Refuse what ``transform`` cannot wrap; return its checked settings."""
    name, contract = name_of(transform), contract_of(loss)
    if contract.structure not in structures:
        raise RecipeError(
            f"{name}: needs a loss over {' or '.join(structures)}, but {contract.name} learns from "
            f"{contract.structure}. Remove {name}."
        )
    if name in contract.applies:
        raise RecipeError(f"{name}: {contract.name} already contains it. Apply it once.")
    again = [other for other in RESUMMING if name in RESUMMING and other in contract.applies]
    if again:
        raise RecipeError(
            f"{name}: {contract.name} adds up tokens anew by {again[0]}, and one would undo the other. Keep one."
        )
    if name in contract.refuses:
        raise RecipeError(
            f"{name}: {contract.name} reads tokens that it would not reach. Remove {name}, or apply it first."
        )
    return check_settings(name, settings_of(transform), settings, name)


def compose(
    transform: Callable[..., Loss], loss: Loss, signature: Signature, pay: Callable[[Given], LossOutput]
) -> Loss:
    """Make the loss that ``transform`` returns: it hands its arguments, by name, to ``pay``.

    Args:
        transform: gives its name and docstring, and is noted in the signature.
        loss: what was transformed.
        signature: of the result, as ``union`` builds it.
        pay: computes the result.
    """
    parameters = dict(signature.parameters)
    parameters["policy"] = _mark(parameters["policy"], Applies(name_of(transform)))
    signature = signature.replace(parameters=list(parameters.values()))
    return _named_loss(f"{name_of(transform)}({name_of(loss)})", transform.__doc__ or "", signature, pay)


def _named_loss(name: str, doc: str, signature: Signature, pay: Callable[[Given], LossOutput]) -> Loss:
    """Return a function of that name and signature that hands its arguments, by name, to ``pay``."""

    def loss(*args: Any, **kwargs: Any) -> LossOutput:
        return pay(signature.bind(*args, **kwargs).arguments)

    loss.__name__ = loss.__qualname__ = name
    loss.__doc__ = doc
    vars(loss)["__signature__"] = signature
    return loss


def pick(given: Given, signature: Signature) -> dict[str, Any]:
    """Return those arguments that a function of that signature takes."""
    return {name: value for name, value in given.items() if name in signature.parameters}


def union(
    owner: str, signatures: Sequence[Signature], added: Sequence[Parameter] = (), marks: Sequence[Any] = ()
) -> Signature:
    """Merge parameters by name: markers add up, an input required by one is required.

    Args:
        owner: who asks, for messages.
        signatures: of the losses that are put together.
        added: further parameters.
        marks: further markers of ``policy``.
    """
    merged: dict[str, Parameter] = {}
    for parameter in [*(p for s in signatures for p in s.parameters.values()), *added]:
        known = merged.get(parameter.name)
        if known is None:
            merged[parameter.name] = parameter
        elif parameter.kind is Parameter.POSITIONAL_OR_KEYWORD:
            merged[parameter.name] = _mark(known, *marks_of(parameter))
        elif parameter.name in INPUTS:
            is_required = parameter.default is Parameter.empty
            merged[parameter.name] = parameter if is_required else known
        elif is_handed_over(parameter):
            raise RecipeError(
                f"{owner}: more than one part carries '{parameter.name}' from step to step. Keep one of them."
            )
        else:
            raise RecipeError(
                f"{owner}: more than one part has the setting '{parameter.name}'. "
                f"Close it first, e.g. bound(loss, {parameter.name}={parameter.default!r})."
            )
    merged["policy"] = _mark(merged["policy"], *marks)
    order = sorted(merged.values(), key=lambda p: (p.kind, p.name == "reference"))
    return Signature(order, return_annotation=LossOutput)


def _mark(parameter: Parameter, *added: Any) -> Parameter:
    """Return the parameter with further markers; markers of one kind become one, each name once."""
    names: dict[type, dict[str, None]] = {}
    for mark in (*marks_of(parameter), *added):
        field = _NAMES_IN.get(type(mark))
        names.setdefault(type(mark), {}).update(dict.fromkeys(getattr(mark, field) if field else ()))
    annotation = base_of(parameter)
    for kind, found in names.items():
        if found or kind not in _NAMES_IN:
            annotation = Annotated[annotation, kind(*found)]
    return parameter.replace(annotation=annotation)


_NAMES_IN = {
    Stats: "names",
    Roles: "names",
    Prompts: "names",
    Applies: "transforms",
    Refuses: "transforms",
}
"""Markers that hold names, and under which attribute; any other kind is present or not."""


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
