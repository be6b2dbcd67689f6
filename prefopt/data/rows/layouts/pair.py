"""Pairs: a chosen and a rejected answer, mostly to one prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefopt.data.rows.convert import is_messages, is_sharegpt, is_transcript
from prefopt.data.rows.layouts.columns import FURTHER, OF_PAIR, OWN_PROMPTS
from prefopt.data.rows.layouts.fields import Fields
from prefopt.data.rows.layouts.layout import Layout
from prefopt.data.rows.layouts.texts import compared, own_prompts_and_answers, prompt_and_answers
from prefopt.data.rows.raw_rows import RowError
from prefopt.types import Comparison, Preference


def _read(row: Fields) -> Comparison:
    scores = row.number("chosen_score"), row.number("rejected_score")
    if (scores[0] is None) != (scores[1] is None):
        raise RowError(row.column("chosen_score" if scores[0] is None else "rejected_score"), "missing")
    given = None if scores[0] is None or scores[1] is None else (scores[0], scores[1])
    if given is None and row.needs.use.ranks:
        raise RowError(row.column("chosen_score"), "missing")
    margin = row.number("margin")
    if margin is None:
        margin = given[0] - given[1] if given else 0.0
    names = [row.column("chosen"), row.column("rejected")]
    cells = [row.cell("chosen"), row.cell("rejected")]
    if row.layout.has_own_prompts:
        read = own_prompts_and_answers(row, names, cells)
    else:
        read = prompt_and_answers(row, names, cells)
    return compared(
        row,
        read,
        (Preference(0, 1, row.weight(), margin, row.probability("soft_label")),),
        given,
    )


def _form_of(cells: Mapping[str, Any]) -> str | None:
    sides = [cells["chosen"], cells["rejected"]]
    prompts = [cells[name] for name in ("prompt", *OWN_PROMPTS) if name in cells]
    if any(is_messages(cell) for cell in [*sides, *prompts]):
        return "sharegpt" if any(is_sharegpt(cell) for cell in [*sides, *prompts]) else "messages"
    if not all(isinstance(cell, str) for cell in [*sides, *prompts]):
        return None
    if not prompts:
        return "transcript" if all(is_transcript(cell) for cell in sides) else None
    return "text"


def _gives(columns: Mapping[str, str]) -> set[str]:
    if {"chosen_score", "rejected_score"} <= columns.keys():
        return {"scores", "margin"}
    return {"margin"} & columns.keys()


PAIR = Layout(
    name="",
    described="",
    required=("chosen", "rejected"),
    optional=(
        "prompt",
        *OWN_PROMPTS,
        "system",
        "tools",
        "chosen_score",
        "rejected_score",
        *OF_PAIR,
        *FURTHER,
    ),
    lists=(),
    aliases={
        "chosen": (
            ("chosen",),
            ("chosen_response", "response_chosen", "preferred_output", "preferred", "accepted"),
        ),
        "rejected": (
            ("rejected",),
            ("rejected_response", "response_rejected", "non_preferred_output", "dispreferred"),
        ),
    },
    gives_way=False,
    compares=True,
    gives=_gives,
    half=None,
    form_of=_form_of,
    read=_read,
)
