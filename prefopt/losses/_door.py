"""Turn a loss over pairs into a function of plain tensors that carries the loss's own signature.

No setting, default or range is written twice. Four doors, for what a loss reads of an answer: its sum
alone, its sum and its length, or its length for ``norm="mean"`` only; with a reference or without.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import Parameter, Signature
from typing import Any, Concatenate, ParamSpec, Protocol

import torch
from torch import Tensor

from prefopt.losses._contract import Loss, LossContract, check_settings, contract_of, signature_of
from prefopt.types import INPUTS, LossOutput, PairLogps, SeqLogps

P = ParamSpec("P")

SUMS = ("policy_chosen_logps", "policy_rejected_logps", "ref_chosen_logps", "ref_rejected_logps")
LENGTHS = ("chosen_lengths", "rejected_lengths")

_TENSORS = {
    "policy_chosen_logps": "summed log-prob of each chosen answer under the policy, nats",
    "policy_rejected_logps": "the same of each rejected answer",
    "ref_chosen_logps": "summed log-prob of each chosen answer under the reference",
    "ref_rejected_logps": "the same of each rejected answer",
    "chosen_lengths": "scored tokens of each chosen answer; read on the host",
    "rejected_lengths": "the same of each rejected answer",
}

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


class SumsLoss(Protocol[P]):
    """A loss on sums of log-probs; its keywords are those of the loss of the same name."""

    def __call__(
        self,
        policy_chosen_logps: Tensor,
        policy_rejected_logps: Tensor,
        ref_chosen_logps: Tensor,
        ref_rejected_logps: Tensor,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Tensor: ...


class LengthsLoss(Protocol[P]):
    """A loss on sums of log-probs and lengths."""

    def __call__(
        self,
        policy_chosen_logps: Tensor,
        policy_rejected_logps: Tensor,
        ref_chosen_logps: Tensor,
        ref_rejected_logps: Tensor,
        chosen_lengths: Tensor,
        rejected_lengths: Tensor,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Tensor: ...


class NormLoss(Protocol[P]):
    """A loss on sums of log-probs, and on lengths if its setting ``norm`` is "mean"."""

    def __call__(
        self,
        policy_chosen_logps: Tensor,
        policy_rejected_logps: Tensor,
        ref_chosen_logps: Tensor,
        ref_rejected_logps: Tensor,
        chosen_lengths: Tensor | None = None,
        rejected_lengths: Tensor | None = None,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Tensor: ...


class FreeLoss(Protocol[P]):
    """A loss on sums of log-probs and lengths, without a reference."""

    def __call__(
        self,
        policy_chosen_logps: Tensor,
        policy_rejected_logps: Tensor,
        chosen_lengths: Tensor,
        rejected_lengths: Tensor,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Tensor: ...


def on_sums(loss: Callable[Concatenate[PairLogps, PairLogps, P], LossOutput]) -> SumsLoss[P]:
    """Open the door to a loss that reads nothing of an answer but its total, under both models."""
    return _open(loss, SUMS)


def on_sums_and_lengths(loss: Callable[Concatenate[PairLogps, PairLogps, P], LossOutput]) -> LengthsLoss[P]:
    """Open the door to a loss that reads an answer's total and length, under both models."""
    return _open(loss, (*SUMS, *LENGTHS))


def on_sums_or_means(loss: Callable[Concatenate[PairLogps, PairLogps, P], LossOutput]) -> NormLoss[P]:
    """Open the door to a loss that reads lengths for ``norm="mean"`` only, under both models."""
    return _open(loss, SUMS, optional=LENGTHS)


def on_policy_sums_and_lengths(loss: Callable[Concatenate[PairLogps, P], LossOutput]) -> FreeLoss[P]:
    """Open the door to a loss that reads an answer's total and length, without a reference."""
    return _open(loss, (*SUMS[:2], *LENGTHS))


def _open(loss: Loss, tensors: tuple[str, ...], optional: tuple[str, ...] = ()) -> Callable[..., Tensor]:
    contract = contract_of(loss)
    place = f"{contract.name}_loss"
    signature = _signature(loss, tensors, optional)

    def door(*args: Any, **kwargs: Any) -> Tensor:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise TypeError(f"{place}: {error}. It takes {', '.join(signature.parameters)}.") from None
        named = {name: given.pop(name) for name in (*SUMS, *LENGTHS) if given.get(name) is not None}
        inputs = {name: given.pop(name) for name in contract.inputs if given.get(name) is not None}
        wanted = {name: value for name, value in given.items() if name in contract.settings}
        settings = check_settings(place, contract.settings, wanted, place)
        if optional:
            _check_lengths(place, settings["norm"], named)
        per_pair = [value for name, value in inputs.items() if INPUTS[name].shape != "[]"]
        _require_one_value_per_pair(place, [*named.values(), *per_pair])
        return loss(*_logps(place, named), **inputs, **settings).loss

    door.__name__ = door.__qualname__ = place
    door.__doc__ = _doc(contract, signature)
    vars(door)["__signature__"] = signature
    return door


def _signature(loss: Loss, tensors: tuple[str, ...], optional: tuple[str, ...]) -> Signature:
    keywords = [p for p in signature_of(loss).parameters.values() if p.kind is Parameter.KEYWORD_ONLY]
    kind = Parameter.POSITIONAL_OR_KEYWORD
    required = [Parameter(name, kind, annotation=Tensor) for name in tensors]
    left_out = [Parameter(name, kind, default=None, annotation=Tensor | None) for name in optional]
    return Signature([*required, *left_out, *keywords], return_annotation=Tensor)


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
    models = [SUMS[:2], SUMS[2:]] if SUMS[2] in named else [SUMS[:2]]
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

    The losses behind the doors read an answer's total, mean and length and nothing else, and those are
    the answer's own.
    """
    if counts is None:
        return SeqLogps(tokens=sums, lengths=(1,) * len(sums))
    means = sums / torch.tensor(counts, dtype=sums.dtype, device=sums.device)
    of_token = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return SeqLogps(tokens=means[of_token.to(sums.device)], lengths=counts, replaced_total=sums)


def _doc(contract: LossContract, signature: Signature) -> str:
    tensors = [name for name in signature.parameters if name in _TENSORS]
    return _DOC.format(
        name=contract.name,
        summary=contract.summary,
        tensors="\n".join(f"    {name}: [P] {_TENSORS[name]}." for name in tensors),
        keywords=", ".join(name for name in signature.parameters if name not in _TENSORS),
    )
