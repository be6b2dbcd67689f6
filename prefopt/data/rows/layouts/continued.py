"""Continued conversations: one that ends with the chosen answer, and the rejected answer alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefopt.data.rows.convert import MISSING
from prefopt.data.rows.layouts.columns import NEEDS_TURNS, OF_PAIR
from prefopt.data.rows.layouts.fields import Fields
from prefopt.data.rows.layouts.layout import Layout
from prefopt.data.rows.layouts.pair import SCORES, gives_of_pair, is_continued, preferred
from prefopt.data.rows.layouts.texts import Texts, reply, turns_of
from prefopt.data.rows.messages import is_sharegpt, messages
from prefopt.data.rows.raw_rows import RowError
from prefopt.types import Comparison


def _read(row: Fields) -> Comparison:
    whole, lone = row.column("chosen"), row.column("rejected")
    turns = messages(row.cell("chosen"), whole)
    if row.cell("prompt") is not MISSING:
        raise RowError(row.column("prompt"), f"has a value, but '{whole}' is read as a whole conversation")
    chosen = reply(turns[-1:], whole)
    rejected = reply(turns_of(row, row.cell("rejected"), lone), lone)
    if len(rejected) > 1:
        raise RowError(lone, f"has {len(rejected)} turns, but stands in place of the last turn of '{whole}'")
    if len(turns) == 1:
        raise RowError(whole, "has no turn before the answer")
    if turns[-2]["role"] == "assistant":
        raise RowError(whole, f"ends with two assistant turns, and '{lone}' does not say which it stands for")
    return preferred(row, Texts(row.opened_by_own(turns[:-1], is_whole=True), (chosen, rejected)))


def _form_of(cells: Mapping[str, Any]) -> str | None:
    if not is_continued(cells):
        return None
    return "sharegpt" if is_sharegpt(cells["chosen"]) else "messages"


CONTINUED = Layout(
    name="",
    described="",
    required=("chosen", "rejected"),
    optional=("prompt", *NEEDS_TURNS, *SCORES, *OF_PAIR),
    lists=(),
    aliases={},
    gives_way=True,
    compares=True,
    gives=gives_of_pair,
    notes=lambda layout: [
        f"'{layout.columns['rejected']}' stands in place of the last turn of '{layout.columns['chosen']}'"
    ],
    half=None,
    form_of=_form_of,
    read=_read,
)
