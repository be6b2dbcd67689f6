"""The door of a loss: what a call is given is compared before the arithmetic, and what it returns is rounded last.

A loss computes in the dtype of sums (``SeqLogps.sum``), so that the difference of two log-ratios is rounded once: here,
to the dtype of the policy's log-probs. All that is compared lies on the host (types, shapes, lengths), so that no
device is waited for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import wraps
from inspect import Signature
from typing import Any, ParamSpec

import torch
from torch import Tensor

from prefopt.losses._contract import base_of, is_handed_over, marks_of, name_of, setting_of, signature_of
from prefopt.losses._paid import require_paid
from prefopt.losses._settings import Setting, check_settings
from prefopt.structures import UnitLogps
from prefopt.types import INPUTS, Carried, LossOutput
from prefopt.types.checks import wide

P = ParamSpec("P")
SIDES = ("policy", "reference")


def checked(loss: Callable[P, LossOutput]) -> Callable[P, LossOutput]:
    """Return ``loss`` behind its door; signature, docstring and name stay.

    A call is refused as a recipe would be: RecipeError for a setting, TypeError for a value of another type,
    ValueError for what does not belong together. What comes back has the dtype of the policy's log-probs.
    """
    # by identity: functools.wraps copies what a loss holds to a function around it, which has no door of its own
    behind: object = getattr(loss, "at_door", None)
    if behind is loss:
        return loss
    door = Door.of(name_of(loss), signature_of(loss))

    @wraps(loss)
    def pay(*args: P.args, **kwargs: P.kwargs) -> LossOutput:
        sides: dict[str, Any] = dict(zip(SIDES, args, strict=False))
        sides |= {side: kwargs[side] for side in SIDES if side in kwargs}
        # what is missing or one too many is Python's to tell
        output = loss(*args, **door.admit(sides, kwargs))
        return door.rounded(output, sides["policy"])

    vars(pay).update(door=door, at_door=pay)
    return pay


@dataclass(frozen=True, slots=True)
class Door:
    """What the signature of a loss says of a call: the type of log-probs, and what each setting may be."""

    name: str
    values: type
    settings: Mapping[str, Setting]
    carried: Mapping[str, Carried]

    @classmethod
    def of(cls, name: str, signature: Signature) -> Door:
        """Read a signature whose annotations are resolved."""
        keywords = [p for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY]
        settings = {p.name: setting_of(name, p) for p in keywords if not is_handed_over(p)}
        carried = {p.name: mark for p in keywords for mark in marks_of(p) if isinstance(mark, Carried)}
        return cls(name, base_of(signature.parameters["policy"]), settings, carried)

    def admit(self, sides: Mapping[str, Any], keywords: Mapping[str, Any]) -> dict[str, Any]:
        """Return the keywords of a call as the loss takes them: inputs wide, whole numbers as floats.

        Args:
            sides: policy and, if given, reference.
            keywords: of the call.

        Raises:
            RecipeError: a setting that a recipe could not have.
            TypeError: log-probs or an input of another type.
            ValueError: units, lengths, shapes or devices differ, or the reference carries a graph.
        """
        for side, value in sides.items():
            if not isinstance(value, self.values):
                raise TypeError(
                    f"{self.name}: {side} is of type {type(value).__name__}. Build a prefopt.{self.values.__name__}."
                )
        if "policy" not in sides:
            return dict(keywords)
        if "reference" in sides:
            compare(self.name, sides["policy"], sides["reference"])
        admitted = dict(keywords)
        given = {key: value for key, value in keywords.items() if key in self.settings}
        if given:
            checked = check_settings(self.name, self.settings, given, self.name)
            admitted |= {key: checked[key] for key in given}
        for key, value in keywords.items():
            if key in INPUTS and value is not None:
                admitted[key] = fitting(f"{self.name}: {key}", key, value, sides["policy"])
        check_carried(self.name, self.carried, keywords)
        return admitted

    def rounded(self, output: LossOutput, policy: UnitLogps) -> LossOutput:
        """Return what the loss paid in the dtype of the policy's log-probs.

        Raises:
            RecipeError: it is not one value for each unit, or has no gradient to learn from.
        """
        require_paid(self.name, output, policy, self.carried)
        dtype = next(iter(policy.parts.values())).tokens.dtype

        def round_all(values: Mapping[str, Any]) -> dict[str, Any]:
            return {
                name: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
                for name, value in values.items()
            }

        own = {name: getattr(output, name) for name in ("loss", "chosen_reward", "rejected_reward")}
        metrics, carried = round_all(output.metrics), round_all(output.carried)
        return replace(output, **round_all(own), metrics=metrics, carried=carried)


def compare(name: str, policy: UnitLogps, reference: UnitLogps) -> None:
    """Refuse a reference that does not belong to the policy: other units or lengths, another device, a graph."""
    if len(policy) != len(reference):
        raise ValueError(
            f"{name}: policy holds {len(policy)} units but reference {len(reference)}. Give the same ones under both."
        )
    other = reference.layout
    for part, lengths in policy.layout.items():
        if part in other and lengths != other[part]:
            raise ValueError(f"{name}: {_difference(part, lengths, other[part])}")
    for part, answers in reference.parts.items():
        own = policy.parts.get(part, answers)
        if own.tokens.device != answers.tokens.device:
            raise ValueError(
                f"{name}: policy is on {own.tokens.device} but reference on {answers.tokens.device}. Move one."
            )
        # not a replaced total: a transform makes it of weights of the policy's, which may carry one
        if answers.tokens.requires_grad or any(values.requires_grad for values in answers.stats.values()):
            raise ValueError(
                f"{name}: reference carries a graph and would be trained as well. Score it under torch.no_grad(), "
                f"or give reference.detach()."
            )


def _difference(part: str, own: tuple[int, ...], other: tuple[int, ...]) -> str:
    if len(own) != len(other):
        return f"policy holds {len(own)} {part} but reference {len(other)}. Give the same ones under both."
    at = next(i for i, (one, two) in enumerate(zip(own, other, strict=True)) if one != two)
    if part == "groups":
        return f"group {at} has {own[at]} answers in policy but {other[at]} in reference. Group both alike."
    return (
        f"{part} {at} has {own[at]} scored tokens in policy but {other[at]} in reference. Score the same tokens "
        f"under both, by one mask."
    )


def fitting(place: str, name: str, value: Any, policy: UnitLogps) -> Tensor:
    """Return an input of the loss, floats in the dtype of sums; refuse another shape, type or device."""
    sizes = {"P": len(policy), "U": len(policy), "S": len(next(iter(policy.parts.values())))}
    letters = INPUTS[name].shape.partition("[")[2].rstrip("]")
    wanted = [sizes.get(letter) for letter in letters.split(", ")] if letters else []
    shown = [
        letter if size is None else size for letter, size in zip(letters.split(", "), wanted, strict=False)
    ]
    way = f"Give [{', '.join(map(str, shown))}]: {INPUTS[name].source}."
    if not isinstance(value, Tensor):
        raise TypeError(f"{place} is of type {type(value).__name__}, no tensor. {way}")
    found = list(value.shape)
    if len(found) != len(wanted) or any(size not in (None, n) for size, n in zip(wanted, found, strict=True)):
        raise ValueError(f"{place} has shape {found}. {way}")
    if value.is_complex():
        raise ValueError(f"{place} is complex. {way}")
    if INPUTS[name].shape.startswith("int64"):
        return _whole(place, value, way)
    device = next(iter(policy.parts.values())).tokens.device
    if found and value.device != device:
        raise ValueError(f"{place} is on {value.device} but policy on {device}. Move it there.")
    # whole numbers as well, for 1 - 2 is 255 in uint8; wide ones stay what they are under autocast, too
    return wide(value)


def _whole(place: str, value: Tensor, way: str) -> Tensor:
    """Return whole numbers as int64, on whatever device: narrower ones would be shifted beyond their bits."""
    if value.is_floating_point() or value.dtype in (torch.bool, torch.uint64):
        raise ValueError(f"{place} has dtype {str(value.dtype).removeprefix('torch.')}, not int64. {way}")
    return value.long()


def check_carried(name: str, carried: Mapping[str, Carried], given: Mapping[str, Any]) -> None:
    """Refuse a part of what a loss hands to itself without the rest, which it would begin anew, and another shape."""
    way = f"Hand back the last output's: {name}(..., **output.carried)."
    there = [key for key in carried if given.get(key) is not None]
    if there and (lacking := [key for key in carried if key not in there]):
        raise ValueError(f"{name}: {there[0]} is given without {lacking[0]}. {way}")
    for key in there:
        value, shape = given[key], carried[key].shape
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: {key} is of type {type(value).__name__}, no tensor. {way}")
        if shape is not None and value.shape != shape:
            raise ValueError(f"{name}: {key} has shape {list(value.shape)}, not {list(shape)}. {way}")
        if value.requires_grad:
            raise ValueError(f"{name}: {key} carries a graph. {way}")
