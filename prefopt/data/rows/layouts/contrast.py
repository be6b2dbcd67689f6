"""Contrasts: one answer to two prompts, of which one asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefopt.data.rows.layouts.columns import NEEDS_TURNS, OF_PAIR, OWN_PROMPTS
from prefopt.data.rows.layouts.fields import Fields
from prefopt.data.rows.layouts.forms import form_of_answers
from prefopt.data.rows.layouts.layout import Layout
from prefopt.data.rows.layouts.texts import compared, own_prompts_and_answers
from prefopt.types import Comparison, Preference


def _read(row: Fields) -> Comparison:
    name, cell = row.column("completion"), row.cell("completion")
    read = own_prompts_and_answers(row, [name, name], [cell, cell])
    margin = row.number("margin") or 0.0
    return compared(
        row,
        read,
        (Preference(0, 1, row.weight(), margin, row.probability("soft_label")),),
        None,
    )


def _form_of(cells: Mapping[str, Any]) -> str | None:
    return form_of_answers(cells["chosen_prompt"], [cells["completion"], cells["rejected_prompt"]])


CONTRAST = Layout(
    name="",
    described="",
    required=(*OWN_PROMPTS, "completion"),
    optional=(*NEEDS_TURNS, *OF_PAIR),
    lists=(),
    aliases={},
    gives_way=True,
    compares=True,
    gives=lambda layout: {"margin"} & layout.columns.keys(),
    notes=lambda layout: [],
    half=None,
    form_of=_form_of,
    read=_read,
)
