"""What every transform is built from: what it may wrap, the signature of the result, and the result.

A transform is three calls: ``admit`` refuses losses that it does not fit and checks its own settings, ``union``
merges the signatures of what is put together, ``compose`` makes the loss. What comes out is a loss like any
other, with the union of its parts' needs as its signature; a transform's own settings are fixed when it is
applied, those of the wrapped loss stay open until ``bound`` closes them. ``picklable`` marks a transform whose
results can be sent to another process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial, wraps
from inspect import Parameter, Signature
from typing import Annotated, Any, ParamSpec

from prefopt.errors import RecipeError
from prefopt.losses._contract import (
    Loss,
    base_of,
    contract_of,
    is_handed_over,
    marks_of,
    name_of,
    settings_of,
)
from prefopt.losses._door import SIDES, Door, checked
from prefopt.losses._settings import check_settings
from prefopt.structures import STRUCTURES
from prefopt.types import INPUTS, Applies, LossOutput, Prompts, Reads, Refuses, Roles, Scale, Stats

P = ParamSpec("P")

Given = Mapping[str, Any]
"""The arguments of a call, by name."""

RESUMMING = ("length_desensitized", "token_weighted", "suffix_from_divergence")
"""The transforms that add up an answer's tokens anew; of two of them, one would undo the other."""

COMBINING = ("multi_ref", "momentum_ref", "spo_sequential")
"""The transforms that compare with several references at once, whose hidden states are not at hand.

A loss can contain one of them.
"""


def admit(
    transform: Callable[..., Loss], loss: Loss, structures: Sequence[str] = ("pairs",), **settings: Any
) -> dict[str, Any]:
    """Refuse what ``transform`` cannot wrap; return its checked settings."""
    name, contract = name_of(transform), contract_of(loss)
    if contract.structure not in structures:
        wanted = " or ".join(STRUCTURES[structure].learns_from for structure in structures)
        raise RecipeError(
            f"{name}: needs a loss over {wanted}, but {contract.name} learns from "
            f"{STRUCTURES[contract.structure].learns_from}. Remove {name}."
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
    # what a transform does to the tokens of an answer cannot be told from its sum
    parameters["policy"] = _mark(parameters["policy"], Applies(name_of(transform)), Reads("tokens"))
    signature = signature.replace(parameters=list(parameters.values()))
    return Composed(f"{name_of(transform)}({name_of(loss)})", transform.__doc__ or "", signature, pay)


class Composed:
    """A loss made of others: it hands its arguments, by name, to ``pay``, behind a door of its own.

    It remembers how it was made, and is pickled as that.
    """

    def __init__(self, name: str, doc: str, signature: Signature, pay: Callable[[Given], LossOutput]) -> None:
        self.__name__ = self.__qualname__ = name
        self.__doc__ = doc
        self.__signature__ = signature
        self.door, self.at_door = Door.of(name, signature), self
        self.made_by: tuple[Callable[..., Loss], tuple[Any, ...], dict[str, Any]] | None = None
        self._pay = pay

    def __call__(self, *args: Any, **kwargs: Any) -> LossOutput:
        given = self.__signature__.bind(*args, **kwargs).arguments
        admitted = self.door.admit({side: given[side] for side in SIDES if side in given}, given)
        return self.door.rounded(self._pay(admitted), given["policy"])

    def __repr__(self) -> str:
        return f"<loss {self.__name__}>"

    def __reduce__(self) -> Any:
        if self.made_by is None:
            raise TypeError(f"{self.__name__}: nobody knows how it was made. Mark its maker as picklable.")
        return _make, self.made_by


def _make(make: Callable[..., Loss], args: tuple[Any, ...], settings: dict[str, Any]) -> Loss:
    return make(*args, **settings)


def picklable(make: Callable[P, Loss]) -> Callable[P, Loss]:
    """Let what ``make`` returns be sent to another process, as the call that made it."""

    @wraps(make)
    def remembered(*args: P.args, **settings: P.kwargs) -> Loss:
        doored: Any = [_doored(value) for value in args]
        made = make(*doored, **{name: _doored(value) for name, value in settings.items()})
        assert isinstance(made, Composed), "made by compose, or Composed itself"
        made.made_by = (remembered, args, settings)
        return made

    return remembered


def _doored(value: Any) -> Any:
    """Return each loss among what a transform is given behind its door, so that what it pays is checked by itself."""
    if isinstance(value, (list, tuple)):
        return [_doored(each) for each in value]
    if isinstance(value, partial):
        return partial(_doored(value.func), *value.args, **value.keywords)
    if not callable(value):
        return value
    contract_of(value)  # says what is wrong with a signature
    return checked(value)


def arguments_of(given: Given, signature: Signature) -> dict[str, Any]:
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
    Reads: "names",
    Roles: "names",
    Prompts: "names",
    Scale: "names",
    Applies: "transforms",
    Refuses: "transforms",
}
"""Markers that hold names, and under which attribute; any other kind is present or not."""
