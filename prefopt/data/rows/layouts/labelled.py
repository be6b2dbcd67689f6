"""Labelled answers: single ones, each desirable or not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefopt.data.rows.convert import label
from prefopt.data.rows.layouts.columns import NEEDS_TURNS
from prefopt.data.rows.layouts.fields import Fields
from prefopt.data.rows.layouts.forms import form_of_answers
from prefopt.data.rows.layouts.layout import Half, Layout
from prefopt.data.rows.layouts.texts import compare_prompt, prompt_and_answers, reply
from prefopt.data.rows.messages import is_messages, is_sharegpt, messages, opened
from prefopt.data.rows.raw_rows import RowError
from prefopt.types import Comparison


def _read(row: Fields) -> Comparison:
    desirable = label(row.cell("label"), row.column("label"))
    if "completion" in row.layout.columns:
        other = row.column("messages")
        if other != row.column("prompt") and not row.is_empty("messages"):
            why = "has a value, but the row is read as prompt and completion. To read none: columns: {messages: false}"
            raise RowError(other, why)
        read = prompt_and_answers(row, [row.column("completion")], [row.cell("completion")])
        prompt, answers = read.prompt, read.answers
    else:
        column = row.column("messages")
        turns = row.opened_by_own(messages(opened(row.cell("messages")), column), is_whole=True)
        if row.column("prompt") != column:
            compare_prompt(row, turns)
        asked = max(
            (i for i, turn in enumerate(turns) if turn["role"] not in ("assistant", "tool")), default=-1
        )
        prompt, answers = turns[: asked + 1], (reply(turns[asked + 1 :], column),)
        if not prompt:
            raise RowError(column, "has no turn before the answer")
    return Comparison(
        prompt=prompt,
        answers=answers,
        preferences=(),
        row_id=row.row_id,
        origin=row.origin,
        labels=(desirable,),
        tools=row.tools(),
    )


def _form_of(cells: Mapping[str, Any]) -> str | None:
    if is_messages(cells.get("messages")) and "completion" not in cells:
        return "sharegpt" if is_sharegpt(cells["messages"]) else "messages"
    if cells.get("prompt") is None:
        return None
    return form_of_answers(cells["prompt"], [cells.get("completion")])


LABELLED_ANSWER = Layout(
    name="labelled",
    described="messages (or prompt and completion) and a true or false label",
    required=("label",),
    optional=("messages", "prompt", "completion", *NEEDS_TURNS, "prompt_embedding"),
    lists=(),
    aliases={
        "messages": (("messages",), ("conversations", "conversation")),
        "label": (("label",), ("kto_tag", "is_desirable", "desirable")),
    },
    gives_way=False,
    compares=False,
    gives=lambda layout: set(),
    notes=lambda layout: [],
    half=Half("completion", "label", "true or false that says whether it is wanted"),
    form_of=_form_of,
    read=_read,
)
