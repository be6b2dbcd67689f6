"""The settings of losses and transforms: what each may be, and the refusal of anything else."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from prefopt.errors import RecipeError
from prefopt.types import OnlyWith, Range
from prefopt.words import did_you_mean, spelled

WORDS: dict[type, str] = {float: "a number", int: "a whole number", bool: "true or false"}
"""What a setting of a type is, in messages."""


_NUMBERS: dict[type, tuple[type, ...]] = {float: (int, float), int: (int,)}
"""What is taken for a number; not a bool, though Python counts it among the whole ones."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of a loss or transform: its default and what it may be."""

    default: Any
    type: type  # float, int, bool or str
    range: Range | None = None
    choices: tuple[str, ...] | None = None
    only_with: OnlyWith | None = None

    @property
    def legal(self) -> str:
        """Say in words what the setting may be, e.g. "a number > 0"."""
        words = WORDS[self.type] if self.choices is None else "one of " + ", ".join(self.choices)
        words = words if self.range is None else f"{words} {self.range}"
        rule = self.only_with
        return words if rule is None else f"{words}, only with {rule.setting}: {' or '.join(rule.choices)}"

    def check(self, value: Any, place: str) -> Any:
        """Return ``value`` in the setting's type, or refuse it.

        Raises:
            RecipeError: the wrong type, outside the range, or no such choice.
        """
        if self.choices is not None:
            if not isinstance(value, str) or value not in self.choices:
                raise RecipeError(
                    f"{place}: {_shown(value)} is no choice.{_meant(value, self.choices)} Give {self.legal}."
                )
            return value
        if self.type is bool:
            if not isinstance(value, bool):
                raise RecipeError(f"{place}: {_shown(value)} is not true or false. Write one of the two.")
            return value
        return self._check_number(value, place)

    def _check_number(self, value: Any, place: str) -> Any:
        value = _of_python(value)
        is_number = not isinstance(value, bool) and isinstance(value, _NUMBERS[self.type])
        if not is_number:
            raise RecipeError(f"{place}: {_shown(value)} is not {WORDS[self.type]}. {self._advice(value)}")
        # a comparison, not math.isfinite: a whole number may be too large for a float
        if not abs(value) <= sys.float_info.max:
            raise RecipeError(f"{place}: {spelled(value)} is not finite. Give {self.legal}.")
        if self.range is not None and value not in self.range:
            raise RecipeError(f"{place}: {spelled(value)} is out of range. Give {self.legal}.")
        return self.type(value)

    def _advice(self, value: Any) -> str:
        if isinstance(value, str) and _is_number_text(value):
            return f"Write {value.strip()} without quotes."
        return f"Give {self.legal}."


def check_settings(
    owner: str, settings: Mapping[str, Setting], given: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """Fill in defaults and refuse unknown or illegal settings.

    Args:
        owner: name of the loss or transform, for messages.
        settings: what exists.
        given: what was asked for.
        where: place in the recipe, for messages.

    Returns:
        A value for every setting, in the order of ``settings``.

    Raises:
        RecipeError: an unknown setting (with a suggestion), an illegal value, or one that another setting leaves
            without effect.
    """
    for name in given:
        if name not in settings:
            accepts = ", ".join(settings) or "no settings"
            hint = did_you_mean(name, settings)
            raise RecipeError(
                f"{where}.{name}: {owner} has no such setting.{hint} {owner} accepts: {accepts}."
            )
    checked = {
        name: setting.check(given[name], f"{where}.{name}") if name in given else setting.default
        for name, setting in settings.items()
    }
    check_effects(settings, checked, where)
    return checked


def check_effects(settings: Mapping[str, Setting], values: Mapping[str, Any], where: str) -> None:
    """Refuse a value off its default that another setting leaves without effect.

    Args:
        settings: what exists.
        values: of every setting.
        where: place in the recipe, for messages.

    Raises:
        RecipeError: names both settings.
    """
    for name, setting in settings.items():
        rule = setting.only_with
        if (
            rule is None
            or values[name] == setting.default
            or values.get(rule.setting) in (None, *rule.choices)
        ):
            continue
        raise RecipeError(
            f"{where}.{name}: {spelled(values[name])} has no effect with {rule.setting}: {values[rule.setting]}. "
            f"Leave it out, or set {rule.setting}: {' or '.join(rule.choices)}."
        )


def _of_python(value: Any) -> Any:
    """Return a number of numpy as one of Python, and all else as it is."""
    if isinstance(value, np.floating):
        return float(value)
    return int(value) if isinstance(value, np.integer) else value


def _shown(value: Any) -> str:
    """Write a value; of a tensor none of the numbers, for they lie on a device, which is not waited for."""
    return "a tensor" if isinstance(value, Tensor) else spelled(value)


def _meant(value: Any, names: tuple[str, ...]) -> str:
    return "" if isinstance(value, Tensor) else did_you_mean(value, names)


def _is_number_text(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
