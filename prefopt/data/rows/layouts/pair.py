"""Pairs: a chosen and a rejected answer, mostly to one prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefopt.data.rows.convert import number
from prefopt.data.rows.layouts.columns import FURTHER, NEEDS_TURNS, OF_PAIR, OWN_PROMPTS
from prefopt.data.rows.layouts.fields import Fields
from prefopt.data.rows.layouts.forms import form_of_answers
from prefopt.data.rows.layouts.layout import Layout, RowLayout
from prefopt.data.rows.layouts.texts import Texts, compared, own_prompts_and_answers, prompt_and_answers
from prefopt.data.rows.messages import is_messages, opens_with
from prefopt.data.rows.raw_rows import RowError
from prefopt.types import Comparison, Preference

SCORES = ("chosen_score", "rejected_score")


def _read(row: Fields) -> Comparison:
    names = [row.column("chosen"), row.column("rejected")]
    cells = [row.cell("chosen"), row.cell("rejected")]
    if row.layout.has_own_prompts:
        return preferred(row, own_prompts_and_answers(row, names, cells))
    return preferred(row, prompt_and_answers(row, names, cells))


def preferred(row: Fields, read: Texts) -> Comparison:
    """Put a chosen and a rejected answer together with what their row says of them."""
    scores = _scores(row)
    margin = row.number("margin")
    if margin is None:
        margin = scores[0] - scores[1] if scores else 0.0
    pair = Preference(0, 1, row.weight(), margin, row.probability("soft_label"))
    return compared(row, read, (pair,), scores)


def _scores(row: Fields) -> tuple[float, float] | None:
    """Return the scores of both answers; one alone is none, unless the loss reads scores."""
    lacking = [name for name in SCORES if row.is_empty(name)]
    if lacking and row.needs.reads_scores:
        raise RowError(row.column(lacking[0]), "missing")
    if len(lacking) == 1:
        row.findings.add("half_scored")
    if lacking:
        return None
    chosen, rejected = (number(row.cell(name), row.column(name)) for name in SCORES)
    return chosen, rejected


def _form_of(cells: Mapping[str, Any]) -> str | None:
    if is_continued(cells):
        return None
    prompts = [cells[name] for name in ("prompt", *OWN_PROMPTS) if name in cells]
    texts = [cells["chosen"], cells["rejected"], *prompts]
    if not any(is_messages(cell) for cell in texts) and not all(isinstance(cell, str) for cell in texts):
        return None
    return form_of_answers(
        prompts[0] if prompts else None, [cells["chosen"], cells["rejected"], *prompts[1:]]
    )


def is_continued(cells: Mapping[str, Any]) -> bool:
    """Whether the chosen answer ends a whole conversation and the rejected one stands alone."""
    is_lone = isinstance(cells["rejected"], str) or opens_with(cells["rejected"]) == "assistant"
    opening = opens_with(cells["chosen"])
    return "prompt" not in cells and is_lone and opening is not None and opening != "assistant"


def gives_of_pair(layout: RowLayout) -> set[str]:
    """Return what the columns of a pair say of it."""
    return (
        {"scores", "margin"} if set(SCORES) <= layout.columns.keys() else {"margin"} & layout.columns.keys()
    )


PAIR = Layout(
    name="",
    described="",
    required=("chosen", "rejected"),
    optional=(
        "prompt",
        *OWN_PROMPTS,
        *NEEDS_TURNS,
        *SCORES,
        *OF_PAIR,
        *FURTHER,
    ),
    lists=(),
    aliases={
        "chosen": (
            ("chosen",),
            (
                "chosen_response",
                "response_chosen",
                "preferred_output",
                "preferred",
                "accepted",
                "chosen_messages",
            ),
            ("messages", "conversations", "conversation"),
        ),
        "rejected": (
            ("rejected",),
            (
                "rejected_response",
                "response_rejected",
                "non_preferred_output",
                "dispreferred",
                "rejected_messages",
            ),
        ),
    },
    gives_way=False,
    compares=True,
    gives=gives_of_pair,
    notes=lambda layout: [],
    half=None,
    form_of=_form_of,
    read=_read,
)
