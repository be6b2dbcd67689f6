"""From the ``loss`` block of a recipe to a loss with every setting closed.

    loss: {name: ipo, beta: 0.1, with: [{name: length_desensitized, alpha: 0.5}, {name: with_nll}]}
    loss: {name: mixed, of: [{name: dpo, weight: 0.8}, {name: simpo, weight: 0.2}]}

``with`` is applied left to right. Strict: an unknown name or setting, a value of the wrong type or out
of range, and a combination that makes no sense are refused in one line that says where.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from prefopt.errors import RecipeError
from prefopt.losses import LOSSES, TRANSFORMS, bound, mixed
from prefopt.losses._combine import MIX_WEIGHT
from prefopt.losses._contract import Loss, LossContract, contract_of, settings_of
from prefopt.losses._settings import check_settings
from prefopt.types import INPUTS, LossOutput
from prefopt.words import did_you_mean, spelled

MIXED = "mixed"
_STRUCTURAL = ("name", "with")


@dataclass(frozen=True, slots=True)
class BoundLoss:
    """A loss whose settings are all fixed, as the trainer calls it.

    Args:
        loss: the composed function; its signature holds only tensors.
        contract: what it needs.
        settings: the block that builds it again, defaults filled in.
        description: one line, as ``describe`` returns it.
    """

    loss: Loss
    contract: LossContract
    settings: Mapping[str, Any]
    description: str

    def __call__(self, policy: Any, reference: Any = None, **inputs: Tensor | None) -> LossOutput:
        """Pay for every unit; hands the loss what it wants and drops the rest.

        Args:
            policy: log-probs in the contract's structure.
            reference: the same under the reference; may be left out where none is needed.
            inputs: tensors named in ``types.INPUTS`` or carried over; None counts as not given.

        Raises:
            ValueError: a reference or a required input is missing, or an input is unknown.
        """
        unknown = inputs.keys() - INPUTS.keys() - set(self.contract.carried)
        if unknown:
            raise ValueError(
                f"{self.description}: unknown input '{min(unknown)}'. A loss may take {', '.join(INPUTS)}."
            )
        wanted = {*self.contract.inputs, *self.contract.carried}
        given = {n: v for n, v in inputs.items() if n in wanted and v is not None}
        missing = [name for name, required in self.contract.inputs.items() if required and name not in given]
        if missing:
            needs = "; ".join(f"{name} {INPUTS[name].shape}, {INPUTS[name].source}" for name in missing)
            raise ValueError(f"{self.description}: an input is missing. Give {needs}.")
        if not self.contract.needs_reference:
            return self.loss(policy, **given)
        if reference is None:
            raise ValueError(f"{self.description}: the reference is missing. Give the same units under it.")
        return self.loss(policy, reference, **given)

    def describe(self) -> str:
        """Return the loss in one line, every setting shown."""
        return self.description


def build_loss(block: Mapping[str, Any], where: str = "loss") -> BoundLoss:
    """Build the loss that a recipe's ``loss`` block names.

    Args:
        block: ``name``, the settings of that loss, and optionally ``with``.
        where: place of the block, for messages.

    Raises:
        RecipeError: anything in the block that cannot be carried out exactly as written.
    """
    _require_mapping(block, where, "{name: dpo}")
    name = _require_name(block, where, [*LOSSES, MIXED], "loss")
    built = _build_mixed(block, where) if name == MIXED else _build_named(name, block, where)
    return _apply_all(built, block.get("with", []), f"{where}.with")


def _build_named(name: str, block: Mapping[str, Any], where: str) -> BoundLoss:
    loss = LOSSES[name]
    given = {key: value for key, value in block.items() if key not in _STRUCTURAL}
    _require_text_keys(given, where)
    settings = check_settings(name, contract_of(loss).settings, given, where)
    closed = bound(loss, **settings)
    return BoundLoss(closed, contract_of(closed), {"name": name, **settings}, _call_text(name, settings))


def _build_mixed(block: Mapping[str, Any], where: str) -> BoundLoss:
    allowed = {*_STRUCTURAL, "of"}
    for key in block:
        if key not in allowed:
            raise RecipeError(
                f"{where}.{key}: mixed has no such setting. Settings go to its parts, under 'of'."
            )
    entries = block.get("of")
    if not isinstance(entries, (list, tuple)) or not entries:
        raise RecipeError(
            f"{where}.of: mixed needs a list of losses. Write of: [{{name: dpo, weight: 0.8}}, ...]."
        )
    parts, weights = [], []
    for index, entry in enumerate(entries):
        place = f"{where}.of.{index}"
        _require_mapping(entry, place, "{name: dpo, weight: 0.8}")
        weights.append(MIX_WEIGHT.check(entry.get("weight", MIX_WEIGHT.default), f"{place}.weight"))
        parts.append(build_loss({key: value for key, value in entry.items() if key != "weight"}, place))
    try:
        loss = mixed([part.loss for part in parts], weights)
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from None
    settings = {
        "name": MIXED,
        "of": [{**part.settings, "weight": w} for part, w in zip(parts, weights, strict=True)],
    }
    terms = [f"{w:g} * {part.description}" for part, w in zip(parts, weights, strict=True)]
    return BoundLoss(loss, contract_of(loss), settings, f"{MIXED}({', '.join(terms)})")


def _apply_all(built: BoundLoss, entries: Any, where: str) -> BoundLoss:
    if not isinstance(entries, (list, tuple)):
        raise RecipeError(f"{where}: {spelled(entries)} is not a list. Write with: [{{name: with_nll}}].")
    for index, entry in enumerate(entries):
        built = _apply(built, entry, f"{where}.{index}")
    return built


def _apply(built: BoundLoss, entry: Any, where: str) -> BoundLoss:
    _require_mapping(entry, where, "{name: with_nll}")
    name = _require_name(entry, where, TRANSFORMS, "transform")
    transform = TRANSFORMS[name]
    given = {key: value for key, value in entry.items() if key != "name"}
    _require_text_keys(given, where)
    settings = check_settings(name, settings_of(transform), given, where)
    try:
        loss = transform(built.loss, **settings)
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from None
    applied = [*built.settings.get("with", []), {"name": name, **settings}]
    text = _call_text(name, settings, built.description)
    return BoundLoss(loss, contract_of(loss), {**built.settings, "with": applied}, text)


def _require_mapping(block: Any, where: str, example: str) -> None:
    if not isinstance(block, Mapping):
        raise RecipeError(f"{where}: {spelled(block)} is not a block. Write {example}.")


def _require_name(block: Mapping[str, Any], where: str, known: Collection[str], kind: str) -> str:
    names = ", ".join(known)
    if "name" not in block:
        raise RecipeError(f"{where}.name: missing. Give the name of a {kind}: {names}.")
    name = block["name"]
    if not isinstance(name, str) or name not in known:
        hint = _meant(name, known, kind) if isinstance(name, str) else ""
        raise RecipeError(f"{where}.name: there is no {kind} {spelled(name)}.{hint} There are: {names}.")
    return name


def _meant(name: str, known: Collection[str], kind: str) -> str:
    """Name the nearest entry, or say so where a loss is given as a transform or the reverse."""
    if hint := did_you_mean(name, known):
        return hint
    if kind == "loss" and name in TRANSFORMS:
        return " It is a transform: put it under 'with' of a loss."
    if kind == "transform" and (name in LOSSES or name == MIXED):
        return " It is a loss: 'with' takes transforms."
    return ""


def _require_text_keys(given: Mapping[Any, Any], where: str) -> None:
    for key in given:
        if not isinstance(key, str):
            raise RecipeError(f"{where}: the key {key!r} is not text. Give the name of a setting.")


def _call_text(name: str, settings: Mapping[str, Any], *arguments: str) -> str:
    shown = [f"{key}={str(v).lower() if isinstance(v, bool) else v}" for key, v in settings.items()]
    return f"{name}({', '.join([*arguments, *shown])})"
