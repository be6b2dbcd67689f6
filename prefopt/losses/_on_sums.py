"""Make of a loss over pairs a function of plain tensors, or say why none can be made and what to build instead.

Both are read from the loss's signature: it takes the sums, the lengths where the loss reads them, the reference's
sums where it compares with one, and then the loss's own inputs and settings, with the loss's own checks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import Parameter, Signature
from typing import Any

import torch
from torch import Tensor

from prefopt.losses._contract import Loss, LossContract, contract_of, signature_of
from prefopt.losses._settings import check_settings
from prefopt.structures import STRUCTURES
from prefopt.types import INPUTS, OTHER_RESPONSES, READS, PairLogps, SeqLogps

SUMS = {
    "policy_chosen_logps": "summed log-prob of each chosen answer under the policy, nats",
    "policy_rejected_logps": "the same of each rejected answer",
    "ref_chosen_logps": "summed log-prob of each chosen answer under the reference",
    "ref_rejected_logps": "the same of each rejected answer",
}
LENGTHS = {
    "chosen_lengths": "scored tokens of each chosen answer; read on the host",
    "rejected_lengths": "the same of each rejected answer",
}

_POLICY, _REFERENCE = tuple(SUMS)[:2], tuple(SUMS)[2:]

_DOC = """Return the loss of ``prefopt.losses.{name}`` for each pair.

{summary}

Args:
{tensors}
    {keywords}: as in ``prefopt.losses.{name}``.

Returns:
    [P], differentiable.

Raises:
    RecipeError: a setting is out of range.
    ValueError: the tensors are not all [P], or lengths are missing, unused or below 1.
"""


def on_sums(loss: Loss) -> Callable[..., Tensor]:
    """Return ``loss`` as a function of summed log-probs, with its own settings, defaults and ranges.

    Raises:
        ValueError: sums are not enough for this loss; the message says what to build instead.
    """
    contract = contract_of(loss)
    if (why := obstacle(contract)) is not None:
        raise ValueError(f"{contract.name}: {why} {instead(contract)}")
    place = f"{contract.name}_loss"
    signature = _signature(loss, contract)

    def pay(*args: Any, **kwargs: Any) -> Tensor:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise TypeError(f"{place}: {error}. It takes {', '.join(signature.parameters)}.") from None
        named = {name: given.pop(name) for name in (*SUMS, *LENGTHS) if given.get(name) is not None}
        inputs = {name: given.pop(name) for name in contract.inputs if given.get(name) is not None}
        wanted = {name: value for name, value in given.items() if name in contract.settings}
        settings = check_settings(place, contract.settings, wanted, place)
        if _reads_lengths_for_means_only(contract):
            _check_lengths(place, settings["norm"], named)
        per_pair = [value for name, value in inputs.items() if INPUTS[name].shape != "[]"]
        _require_one_value_per_pair(place, [*named.values(), *per_pair])
        return loss(*_logps(place, named), **inputs, **settings).loss

    pay.__name__ = pay.__qualname__ = place
    pay.__doc__ = _doc(contract, signature)
    vars(pay)["__signature__"] = signature
    return pay


def obstacle(contract: LossContract) -> str | None:
    """Say in a sentence why sums of log-probs are not enough for a loss; None where they are."""
    if (why := STRUCTURES[contract.structure].beyond_sums) is not None:
        return why
    if contract.roles:
        return f"It also reads {OTHER_RESPONSES[contract.roles[0]]}."
    if contract.policy_stats:
        return f"It reads of each token: {', '.join(contract.policy_stats)}."
    if contract.reads == "tokens":
        return f"It reads {READS['tokens']}."
    if contract.carried:
        return "It carries averages from step to step."
    if "prompt_embedding" in contract.inputs:
        return "It compares prompts."
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


def _reads_lengths_for_means_only(contract: LossContract) -> bool:
    return contract.reads == "length" and "norm" in contract.settings


def _signature(loss: Loss, contract: LossContract) -> Signature:
    kind = Parameter.POSITIONAL_OR_KEYWORD
    sums = SUMS if contract.needs_reference else _POLICY
    parameters = [Parameter(name, kind, annotation=Tensor) for name in sums]
    if _reads_lengths_for_means_only(contract):
        parameters += [Parameter(name, kind, default=None, annotation=Tensor | None) for name in LENGTHS]
    elif contract.reads == "length":
        parameters += [Parameter(name, kind, annotation=Tensor) for name in LENGTHS]
    keywords = [p for p in signature_of(loss).parameters.values() if p.kind is Parameter.KEYWORD_ONLY]
    return Signature([*parameters, *keywords], return_annotation=Tensor)


def _check_lengths(place: str, norm: str, named: Mapping[str, Tensor]) -> None:
    are_given = [name in named for name in LENGTHS]
    if norm == "mean" and not all(are_given):
        raise ValueError(
            f"{place}: norm='mean' needs chosen_lengths and rejected_lengths. Give both, or norm='sum'."
        )
    if norm != "mean" and any(are_given):
        raise ValueError(f"{place}: norm={norm!r} does not use lengths. Leave them out, or give norm='mean'.")


def _require_one_value_per_pair(place: str, tensors: list[Tensor]) -> None:
    shapes = [list(tensor.shape) for tensor in tensors]
    if tensors[0].dim() != 1 or any(shape != shapes[0] for shape in shapes):
        raise ValueError(
            f"{place}: the tensors have shapes {shapes}. Give one value per pair, [P], everywhere."
        )


def _logps(place: str, named: Mapping[str, Tensor]) -> list[PairLogps]:
    """Build the pairs of the policy and, where its sums are given, of the reference."""
    chosen_lengths, rejected_lengths = (_counts(place, name, named.get(name)) for name in LENGTHS)
    models = [_POLICY, _REFERENCE] if _REFERENCE[0] in named else [_POLICY]
    return [
        PairLogps(_stand_in(named[chosen], chosen_lengths), _stand_in(named[rejected], rejected_lengths))
        for chosen, rejected in models
    ]


def _counts(place: str, name: str, lengths: Tensor | None) -> tuple[int, ...] | None:
    if lengths is None:
        return None
    counts = tuple(int(length) for length in lengths.tolist())
    if min(counts, default=1) < 1:
        raise ValueError(f"{place}: {name} holds {min(counts)}. Give at least one scored token per answer.")
    return counts


def _stand_in(sums: Tensor, counts: tuple[int, ...] | None) -> SeqLogps:
    """Stand each answer in by tokens of one log-prob, or by a single token where lengths are not read.

    A loss that comes here reads an answer's total, mean and length and nothing else, and those are the answer's own.
    """
    if counts is None:
        return SeqLogps(tokens=sums, lengths=(1,) * len(sums))
    means = sums / torch.tensor(counts, dtype=sums.dtype, device=sums.device)
    of_token = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return SeqLogps(tokens=means[of_token.to(sums.device)], lengths=counts, replaced_total=sums)


def _doc(contract: LossContract, signature: Signature) -> str:
    told = {**SUMS, **LENGTHS}
    tensors = [name for name in signature.parameters if name in told]
    return _DOC.format(
        name=contract.name,
        summary=contract.summary,
        tensors="\n".join(f"    {name}: [P] {told[name]}." for name in tensors),
        keywords=", ".join(name for name in signature.parameters if name not in told),
    )
