"""Choices: two answers, and which of them is better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prefopt.data.rows.convert import MISSING, number
from prefopt.data.rows.layouts.columns import FURTHER
from prefopt.data.rows.layouts.fields import Fields
from prefopt.data.rows.layouts.forms import form_of_answers
from prefopt.data.rows.layouts.layout import Layout
from prefopt.data.rows.layouts.texts import compared, prompt_and_answers
from prefopt.data.rows.raw_rows import RowError
from prefopt.types import Comparison, Preference
from prefopt.words import spelled

STRENGTHS = ("overall_preference", "preference_strength")
"""Columns that say by how much the better of two answers is better."""

_TIES = ("tie", "both", "equal", "none", "draw", "tie (bothbad)", "both_bad")


def _read(row: Fields) -> Comparison:
    names = [row.column("first"), row.column("second")]
    read = prompt_and_answers(row, names, [row.cell("first"), row.cell("second")])
    strength = _strength(row, names)
    chosen = 0 if strength >= 0 else 1
    margin = abs(strength) if row.column("better") in STRENGTHS else 0.0
    preferences = (Preference(chosen, 1 - chosen, row.weight(), margin),)
    return compared(row, read, preferences, (0.0, 0.0) if strength == 0 else None)


def _strength(row: Fields, names: Sequence[str]) -> float:
    """Return how much the first answer is better: positive, negative, or zero for a tie."""
    column, value = row.column("better"), row.cell("better")
    if column in STRENGTHS:
        # HelpSteer's scale: -3 is "the first is much better", 3 "the second".
        return -number(value, column)
    if value is MISSING or value == "":
        raise RowError(column, "missing")
    word = str(value).strip().lower()
    if word in _TIES:
        return 0.0
    for sign, name in ((1.0, names[0]), (-1.0, names[1])):
        suffix = name.lower().rsplit("_", 1)[-1]
        if word in (name.lower(), suffix, f"model_{suffix}"):
            return sign
    raise RowError(column, f"names neither '{names[0]}' nor '{names[1]}', found {spelled(value, 40)}")


def _form_of(cells: Mapping[str, Any]) -> str | None:
    return form_of_answers(cells["prompt"], [cells["first"], cells["second"]])


CHOICE = Layout(
    name="ranked",
    described="or two responses and which is better",
    required=("prompt", "first", "second", "better"),
    optional=("system", "tools", "weight", "prompt_embedding", *FURTHER),
    lists=(),
    aliases={
        "first": (("first",),),  # and columns.NAMED_TOGETHER
        "second": (("second",),),
        "better": (
            ("better",),
            ("better_response_id", "winner", "preference", "overall_preference", "preference_strength"),
        ),
    },
    gives_way=False,
    compares=True,
    gives=lambda columns: {"margin"} if columns["better"] in STRENGTHS else set(),
    half=None,
    form_of=_form_of,
    read=_read,
)
