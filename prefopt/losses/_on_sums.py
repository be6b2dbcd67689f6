"""Make of a loss a function of plain tensors, or say why none can be made and what to build instead.

Both are read from the loss's signature: it takes the sums, the lengths where the loss reads them, the reference's
sums where it compares with one, what its structure has besides, and then the loss's own inputs and settings, with the
loss's own checks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, Signature
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prefopt.losses._contract import Loss, LossContract, contract_of, signature_of
from prefopt.losses._door import checked
from prefopt.losses._settings import check_settings
from prefopt.structures import STRUCTURES, SumsForm, UnitLogps
from prefopt.types import INPUTS, OTHER_RESPONSES, READS, LossOutput, OnlyWith, SeqLogps
from prefopt.types.checks import widened


class PairLoss(NamedTuple):
    """What a loss that compares answers pays, and the rewards that it compared.

    ``loss`` is differentiable, the rewards are detached; all [P], or [G] for lists: there the best answer's reward,
    and the mean of the others'.
    """

    loss: Tensor
    chosen_reward: Tensor
    rejected_reward: Tensor


class AnswerLoss(NamedTuple):
    """What a loss over single answers pays, and the reward of each, detached; both [S]."""

    loss: Tensor
    reward: Tensor


class CarriedPairLoss(NamedTuple):
    """As ``PairLoss``, with what to hand back in the next optimizer step: ``**carried``."""

    loss: Tensor
    chosen_reward: Tensor
    rejected_reward: Tensor
    carried: Mapping[str, Tensor]


class CarriedAnswerLoss(NamedTuple):
    """As ``AnswerLoss``, with what to hand back in the next optimizer step: ``**carried``."""

    loss: Tensor
    reward: Tensor
    carried: Mapping[str, Tensor]


Paid = PairLoss | AnswerLoss | CarriedPairLoss | CarriedAnswerLoss

_PAID: dict[tuple[bool, bool], type[Paid]] = {
    (True, False): PairLoss,
    (False, False): AnswerLoss,
    (True, True): CarriedPairLoss,
    (False, True): CarriedAnswerLoss,
}
"""By whether answers are compared, and whether anything is carried over."""

_DOC = """Return the loss of ``prefopt.losses.{name}`` for each of its units, with the rewards.

{summary}

Args:
{tensors}
    {keywords}: as in ``prefopt.losses.{name}``.

Returns:
    {kind}({fields}), to be unpacked or read by name.
    ``loss`` is differentiable, all else is detached.{whole}

Raises:
    RecipeError: a setting is illegal.
    TypeError: an argument is missing, unknown or no tensor.
    ValueError: tensors differ in shape, or lengths are missing, unused or below 1.
"""

_WHOLE = """
    Units depend on each other: give all of the optimizer step, over all packs and ranks."""


def on_sums(loss: Loss) -> Callable[..., Any]:
    """Return ``loss`` as a function of summed log-probs, with its own settings, defaults and ranges.

    Raises:
        ValueError: sums are not enough for this loss; the message says what to build instead.
    """
    loss, contract = checked(loss), contract_of(loss)
    if (why := obstacle(contract)) is not None:
        raise ValueError(f"{contract.name}: {why} {instead(contract)}")
    place, kind = f"{contract.name}_loss", _kind(contract)
    signature = _signature(loss, contract)
    handed_over = {*contract.inputs, *contract.carried}

    def pay(*args: Any, **kwargs: Any) -> Any:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise TypeError(f"{place}: {error}. It takes {', '.join(signature.parameters)}.") from None
        named = {name: value for name, value in given.items() if value is not None}
        wanted = {name: value for name, value in given.items() if name in contract.settings}
        settings = check_settings(place, contract.settings, wanted, place)
        if (rule := _rule_for_lengths(contract)) is not None:
            _check_lengths(place, rule, settings[rule.setting], {n: n in named for n in _lengths(contract)})
        logps = _logps(place, contract, named)
        inputs = {name: value for name, value in named.items() if name in handed_over}
        _check_inputs(place, contract, inputs, named, len(logps[0]))
        return _pack(kind, loss(*logps, **inputs, **settings))

    pay.__name__ = pay.__qualname__ = place
    pay.__doc__ = _doc(contract, signature)
    vars(pay)["__signature__"] = signature
    return pay


def obstacle(contract: LossContract) -> str | None:
    """Say in a sentence why sums of log-probs are not enough for a loss; None where they are."""
    structure = STRUCTURES[contract.structure]
    if structure.on_sums is None:
        return f"It learns from {structure.learns_from}."
    if contract.policy_stats:
        return f"It reads of each token: {', '.join(contract.policy_stats)}."
    if contract.reads == "tokens":
        return f"It reads {READS['tokens']}."
    if contract.roles and contract.reads != "sum":
        return f"It also reads {OTHER_RESPONSES[contract.roles[0]]}."
    return None


def instead(contract: LossContract) -> str:
    """Say in a sentence how to build the log-probs that a loss takes from per-token ones, and how to call it."""
    whole = " of the whole optimizer step" if contract.is_whole_step else ""
    sides = "policy, reference" if contract.needs_reference else "policy"
    inputs = "".join(f", {name}=..." for name in contract.inputs)
    carried = ", **carried" if contract.carried else ""
    call = f"prefopt.losses.{contract.name}({sides}{inputs}{carried})"
    note = ", where carried is {} at first and then the last output's" if carried else ""
    return f"Build {_values(contract)} from per-token log-probs{whole} and call {call}{note}."


def _values(contract: LossContract) -> str:
    """Return the code that builds a loss's log-probs."""
    stats = "".join(f", {stat}=..." for stat in contract.policy_stats)
    others = ", ".join(f"'{role}': {role}" for role in contract.roles)
    return STRUCTURES[contract.structure].code(stats, others and f", {{{others}}}")


def _kind(contract: LossContract) -> type[Paid]:
    return _PAID[STRUCTURES[contract.structure].rows.compares, bool(contract.carried)]


def _pack(kind: type[Paid], output: LossOutput) -> Paid:
    found = {
        "loss": output.loss,
        "reward": output.chosen_reward,
        "chosen_reward": output.chosen_reward,
        "rejected_reward": output.rejected_reward,
        "carried": output.carried,
    }
    return kind._make(found[name] for name in kind._fields)


def _form(contract: LossContract) -> SumsForm:
    form = STRUCTURES[contract.structure].on_sums
    assert form is not None, "asked for after `obstacle`"
    return form


def _models(contract: LossContract) -> tuple[str, ...]:
    return ("policy", "ref") if contract.needs_reference else ("policy",)


def _sums(contract: LossContract, model: str) -> list[str]:
    """Return the names of a model's sums: of the units' answers, then of further responses."""
    return [f"{model}_{side}logps" for side in (*_form(contract).answers, *(f"{r}_" for r in contract.roles))]


def _lengths(contract: LossContract) -> list[str]:
    return [f"{side}lengths" for side in _form(contract).answers]


def _rule_for_lengths(contract: LossContract) -> OnlyWith | None:
    """Return beside which choice of an open setting lengths are read, if one decides about it."""
    rule = contract.reads_only_with
    return rule if rule is not None and rule.setting in contract.settings else None


def _signature(loss: Loss, contract: LossContract) -> Signature:
    place = Parameter.POSITIONAL_OR_KEYWORD
    names = [name for model in _models(contract) for name in _sums(contract, model)]
    parameters = [Parameter(name, place, annotation=Tensor) for name in names]
    parameters += [Parameter(n, place, annotation=kind) for n, (kind, _) in _form(contract).besides.items()]
    if contract.reads == "length":
        optional = _rule_for_lengths(contract) is not None
        kind: dict[str, Any] = (
            {"default": None, "annotation": Tensor | None} if optional else {"annotation": Tensor}
        )
        parameters += [Parameter(name, place, **kind) for name in _lengths(contract)]
    keywords = [p for p in signature_of(loss).parameters.values() if p.kind is Parameter.KEYWORD_ONLY]
    return Signature([*parameters, *keywords], return_annotation=_kind(contract))


def _check_lengths(place: str, rule: OnlyWith, choice: str, are_given: Mapping[str, bool]) -> None:
    names, reading = (
        " and ".join(are_given),
        " or ".join(f"{rule.setting}={wanted!r}" for wanted in rule.choices),
    )
    if choice in rule.choices and not all(are_given.values()):
        raise ValueError(f"{place}: {reading} needs {names}. Give them, or another {rule.setting}.")
    if choice not in rule.choices and any(are_given.values()):
        raise ValueError(
            f"{place}: {rule.setting}={choice!r} does not use lengths. Leave them out, or give {reading}."
        )


def _logps(place: str, contract: LossContract, named: Mapping[str, Any]) -> list[UnitLogps]:
    """Build the units of the policy and, where it is compared with, of the reference."""
    form = _form(contract)
    answers = [name for model in _models(contract) for name in _sums(contract, model)[: len(form.answers)]]
    lengths = [name for name in _lengths(contract) if name in named]
    _require_alike(place, [named[name] for name in (*answers, *lengths)], form.unit)
    for role in contract.roles:
        _require_alike(place, [named[f"{model}_{role}_logps"] for model in _models(contract)], "K")
    counts = [_counts(place, name, named.get(name)) for name in _lengths(contract)]
    besides = {name: named[name] for name in form.besides}
    built = []
    for model in _models(contract):
        sums = [named[name] for name in _sums(contract, model)]
        sides = [_stand_in(*pair) for pair in zip(sums, counts, strict=False)]
        others = {r: _stand_in(s, None) for r, s in zip(contract.roles, sums[len(sides) :], strict=True)}
        try:
            built.append(form.build(sides, besides, others))
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
    return built


def _require_alike(place: str, tensors: Sequence[Any], unit: str) -> None:
    """Refuse anything but tensors of one value per pair, per answer or per mismatched answer."""
    for value in tensors:
        if not isinstance(value, Tensor):
            raise TypeError(f"{place}: {type(value).__name__} is no tensor. Give tensors [{unit}].")
    shapes = [list(tensor.shape) for tensor in tensors]
    if tensors[0].dim() != 1 or any(shape != shapes[0] for shape in shapes):
        what = {"P": "pair", "S": "answer", "K": "mismatched answer"}[unit]
        raise ValueError(
            f"{place}: the tensors have shapes {shapes}. Give one value per {what}, [{unit}], everywhere."
        )


def _check_inputs(
    place: str, contract: LossContract, inputs: Mapping[str, Tensor], named: Mapping[str, Tensor], units: int
) -> None:
    """Refuse an input that has not one value, or one row, for each answer or unit that it belongs to."""
    sums = named[_sums(contract, "policy")[0]]
    for name, value in inputs.items():
        shape = INPUTS[name].shape if name in INPUTS else "[]"
        if shape == "[]":
            continue
        wanted = len(sums) if "S" in shape else units
        if value.dim() != shape.count(",") + 1 or len(value) != wanted:
            raise ValueError(
                f"{place}: the tensors have shapes {[list(sums.shape), list(value.shape)]}, the second of {name}. "
                f"Give {shape.removeprefix('int64 ')}."
            )


def _counts(place: str, name: str, lengths: Tensor | None) -> tuple[int, ...] | None:
    if lengths is None:
        return None
    way = "Give at least one scored token per answer, in whole numbers."
    if lengths.dtype == torch.bool or lengths.is_complex():
        raise ValueError(f"{place}: {name} has dtype {str(lengths.dtype).removeprefix('torch.')}. {way}")
    for length in (found := lengths.tolist()):
        if not (1 <= length < math.inf and length == int(length)):
            raise ValueError(f"{place}: {name} holds {length:g}. {way}")
    return tuple(map(int, found))


def _stand_in(sums: Tensor, counts: tuple[int, ...] | None) -> SeqLogps:
    """Stand each answer in by tokens of one log-prob, or by a single token where lengths are not read.

    A loss that comes here reads an answer's total, mean and length and nothing else, and those are the answer's own.
    """
    sums = widened(sums)
    if counts is None:
        return SeqLogps(tokens=sums, lengths=(1,) * len(sums))
    means = sums / torch.tensor(counts, dtype=sums.dtype, device=sums.device)
    of_token = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return SeqLogps(tokens=means[of_token.to(sums.device)], lengths=counts, replaced_total=sums)


def _doc(contract: LossContract, signature: Signature) -> str:
    form, kind = _form(contract), _kind(contract)
    told = {
        f"policy_{side}logps": f"summed log-prob of {what} under the policy, nats"
        for side, what in form.answers.items()
    }
    told |= {
        f"{side}lengths": f"scored tokens of {what}; read on the host" for side, what in form.answers.items()
    }
    told = {name: f"[{form.unit}] {text}" for name, text in told.items()}
    told |= {f"policy_{role}_logps": f"[K] the same of {OTHER_RESPONSES[role]}" for role in contract.roles}
    told |= {
        n.replace("policy", "ref", 1): f"{text[:4]}the same under the reference"
        for n, text in told.items()
        if "policy" in n
    }
    told |= {name: text for name, (_, text) in form.besides.items()}
    return _DOC.format(
        name=contract.name,
        summary=contract.summary,
        tensors="\n".join(f"    {name}: {told[name]}." for name in signature.parameters if name in told),
        keywords=", ".join(name for name in signature.parameters if name not in told),
        kind=kind.__name__,
        fields=", ".join(kind._fields),
        whole=_WHOLE if contract.is_whole_step else "",
    )
