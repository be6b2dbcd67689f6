"""Choices: two answers, and which of them is better, by a word or by their scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefopt.data.rows.convert import MISSING, label, number
from prefopt.data.rows.layouts.better import counts_from_zero, side_of
from prefopt.data.rows.layouts.columns import FURTHER, NEEDS_TURNS
from prefopt.data.rows.layouts.fields import Fields
from prefopt.data.rows.layouts.forms import form_of_answers
from prefopt.data.rows.layouts.layout import Half, Layout, RowLayout
from prefopt.data.rows.layouts.texts import compared, prompt_and_answers
from prefopt.data.rows.raw_rows import RowError
from prefopt.types import Comparison, Preference

STRENGTHS = ("overall_preference", "preference_strength")
"""Columns that say by how much the better of two answers is better."""

WINS = ("first_wins", "second_wins")
SCORES = ("first_score", "second_score")


def _read(row: Fields) -> Comparison:
    strength = _strength(row)
    margin = abs(strength) if _has_strength(row.layout) else 0.0
    return _decided(row, strength, margin, (0.0, 0.0) if strength == 0 else None)


def _read_scores(row: Fields) -> Comparison:
    first, second = (number(row.cell(name), row.column(name)) for name in SCORES)
    return _decided(row, first - second, abs(first - second), (first, second))


def _decided(row: Fields, strength: float, margin: float, scores: tuple[float, float] | None) -> Comparison:
    """Put two answers together, of which the first is better by ``strength``."""
    names = [row.column("first"), row.column("second")]
    read = prompt_and_answers(row, names, [row.cell("first"), row.cell("second")])
    chosen = 0 if strength >= 0 else 1
    return compared(row, read, (Preference(chosen, 1 - chosen, row.weight(), margin),), scores)


def _strength(row: Fields) -> float:
    """Return how much the first answer is better: positive, negative, or zero for a tie."""
    if not row.has("better"):
        return _won(row)
    strength = _said_strength(row)
    if all(row.has(name) for name in WINS) and strength * (won := _won(row)) <= 0 and (strength or won):
        why = f"says otherwise than '{row.column('better')}'. Keep one: columns: {{first_wins: false}}, say"
        raise RowError(row.column(WINS[0]), why)
    return strength


def _won(row: Fields) -> float:
    first, second = (label(row.cell(name), row.column(name)) for name in WINS)
    if first and second:
        raise RowError(row.column(WINS[1]), f"is true, but so is '{row.column(WINS[0])}'")
    return float(first) - float(second)


def _said_strength(row: Fields) -> float:
    column, value = row.column("better"), row.cell("better")
    if _has_strength(row.layout):
        # HelpSteer's scale: -3 is "the first is much better", 3 "the second".
        return -number(value, column)
    if value is MISSING or value == "":
        raise RowError(column, "missing")
    return side_of(value, column, (row.column("first"), row.column("second")), row.layout.source.better_is)


def _has_strength(layout: RowLayout) -> bool:
    return layout.columns.get("better") in STRENGTHS and layout.source.better_is is None


def _form_of(cells: Mapping[str, Any]) -> str | None:
    if "better" not in cells and not set(WINS) <= cells.keys():
        return None
    return form_of_answers(cells.get("prompt"), [cells["first"], cells["second"]])


def _notes(layout: RowLayout) -> list[str]:
    names = layout.columns["first"], layout.columns["second"]
    if "better" not in layout.columns or layout.source.better_is is not None or _has_strength(layout):
        return []
    if not counts_from_zero(names, layout.columns["better"]):
        return []
    return [
        f"'{layout.columns['better']}' says 0 for '{names[0]}' and 1 for '{names[1]}'; better_is says otherwise"
    ]


_OPTIONAL = ("prompt", *NEEDS_TURNS, "weight", "prompt_embedding", *FURTHER)

CHOICE = Layout(
    name="ranked",
    described="or two responses and which is better",
    required=("first", "second"),
    optional=("better", *WINS, *_OPTIONAL),
    lists=(),
    aliases={
        "first": (("first",),),  # and columns.NAMED_TOGETHER
        "second": (("second",),),
        "better": (
            ("better",),
            ("better_response_id", "winner", "preference", "overall_preference", "preference_strength"),
        ),
        "first_wins": (("first_wins",),),
        "second_wins": (("second_wins",),),
    },
    gives_way=False,
    compares=True,
    gives=lambda layout: {"margin"} if _has_strength(layout) else set(),
    notes=_notes,
    half=Half("first", "better", "word on which of the two is better"),
    form_of=_form_of,
    read=_read,
)

BY_SCORE = Layout(
    name="ranked",
    described="or two responses and a score for each",
    required=("first", "second", *SCORES),
    optional=_OPTIONAL,
    lists=(),
    aliases={"first_score": (("first_score",),), "second_score": (("second_score",),)},
    gives_way=True,
    compares=True,
    gives=lambda layout: {"scores", "margin"},
    notes=lambda layout: [
        f"the better answer is the one with the higher of {' and '.join(layout.columns[name] for name in SCORES)}"
    ],
    half=None,
    form_of=lambda cells: form_of_answers(cells.get("prompt"), [cells["first"], cells["second"]]),
    read=_read_scores,
)
