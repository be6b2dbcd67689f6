"""Decide which layout the rows of a source have, from their first ones, and read each row by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from prefopt.data.rows.convert import MISSING, cell_at, opened, sequence
from prefopt.data.rows.layouts.columns import find, has
from prefopt.data.rows.layouts.fields import Fields
from prefopt.data.rows.layouts.layout import Layout, RowLayout
from prefopt.data.rows.layouts.table import ALIASES, LAYOUTS, ROW_LAYOUTS
from prefopt.data.rows.loss_needs import PAIR_NEEDS, READ_FOR, Needs
from prefopt.data.rows.raw_rows import RawRow
from prefopt.data.rows.source import Source
from prefopt.errors import DataError
from prefopt.types import Comparison
from prefopt.words import did_you_mean


def detect(rows: Sequence[RawRow], source: Source, needs: Needs = PAIR_NEEDS) -> RowLayout:
    """Return the one layout that fits the first rows of ``source``.

    Rows that fit no layout are passed over, so that one bad row at the top does not decide. Columns that
    only some losses read are looked for only if ``needs`` asks for them.

    Raises:
        DataError: no layout or more than one fits, or ``source.columns`` or ``source.layout`` name
            something that the rows do not have.
    """
    values = [row.value for row in rows if row.value is not None]
    if not values:
        first = next((row.bad(row.error).describe() for row in rows if row.error), source.place)
        raise DataError(
            f"{first}. No readable row among the first {len(rows)}. Give JSON objects or a table."
        )
    _check_names(source, values)
    for value in values:
        found = _candidates(value, values, source, needs)
        if len(found) == 1:
            return _with_given(found[0], source, needs)
        if found:
            names = " and ".join(f"'{layout.name}' ({_needs(layout)})" for layout in found)
            raise DataError(
                f"{source.place}: the columns fit more than one layout, {names}. Name one as data.layout."
            )
    raise DataError(_no_match(source, values))


def to_comparison(
    layout: RowLayout, row: Mapping[str, Any], row_id: int, origin: str, needs: Needs = PAIR_NEEDS
) -> Comparison:
    """Read one row.

    A pair gives one preference, its margin the ``margin`` column or else the gap of the scores.
    K ranked answers give K - 1 preferences, the best answer against each other one, with the gap of
    their scores as margin; ranks count as scores of the opposite sign. The first of equally good
    answers counts as the best. A labelled answer gives none. Gold answers, rationales and embeddings
    are read only if ``needs`` asks for them.

    Raises:
        RowError: the row cannot be used; says which column and why.
    """
    fields = Fields(layout, row, needs, origin, row_id)
    found = layout.layout.read(fields)
    embedding = fields.embedding()
    return found if embedding is None else replace(found, prompt_embedding=embedding)


def _candidates(
    value: Mapping[str, Any], values: Sequence[Mapping[str, Any]], source: Source, needs: Needs
) -> list[RowLayout]:
    found: list[RowLayout] = []
    named = [layout for layout in ROW_LAYOUTS if layout.name == source.layout]
    for layout in named or ROW_LAYOUTS:
        columns = {name: path for name in layout.required if (path := find(name, ALIASES, [value], source))}
        if len(columns) < len(layout.required) or (layout.gives_way and found):
            continue
        wanted = [name for name in layout.optional if name not in READ_FOR or needs.reads(name)]
        columns |= {name: path for name in wanted if (path := find(name, ALIASES, values, source))}
        form = _form(layout, columns, value, source.layout)
        if form == "text" and source.layout == "auto" and _has_text(columns.get("system"), values):
            form = "messages"
        if form:
            found.append(RowLayout(form, layout, columns, tuple(_columns_of(values))))
    return found


def _has_text(path: str | None, values: Sequence[Mapping[str, Any]]) -> bool:
    return path is not None and any(cell_at(value, path) not in (MISSING, None, "") for value in values)


def _form(layout: Layout, columns: Mapping[str, str], value: Mapping[str, Any], asked: str) -> str | None:
    cells = {
        name: (sequence if name in layout.lists else opened)(cell_at(value, path))
        for name, path in columns.items()
    }
    found = layout.form_of({name: cell for name, cell in cells.items() if cell not in (MISSING, None)})
    match asked:
        case "messages" | "sharegpt":
            return asked if found in ("messages", "sharegpt", "text") else None
        case "text" | "transcript":
            return found if found == asked else None
    return found


def _with_given(layout: RowLayout, source: Source, needs: Needs) -> RowLayout:
    unused = [name for name in source.columns or {} if name not in layout.columns]
    if unused and unused[0] in READ_FOR and not needs.reads(unused[0]):
        raise DataError(f"{source.place}: columns.{unused[0]}: {needs.loss} does not read it. Take it out.")
    if unused:
        raise DataError(
            f"{source.place}: columns.{unused[0]} has no use in layout '{layout.name}', which reads "
            f"{_needs(layout)}. Remove it or name another layout."
        )
    return layout


def _needs(layout: RowLayout) -> str:
    return ", ".join(dict.fromkeys(layout.columns.values()))


def _check_names(source: Source, values: Sequence[Mapping[str, Any]]) -> None:
    if source.layout != "auto" and source.layout not in LAYOUTS:
        raise DataError(
            f"{source.place}: no layout '{source.layout}'.{did_you_mean(source.layout, LAYOUTS)} "
            f"Layouts: auto, {', '.join(LAYOUTS)}."
        )
    for name, path in (source.columns or {}).items():
        if name not in ALIASES:
            raise DataError(
                f"{source.place}: columns.{name} is no column that a layout reads.{did_you_mean(name, ALIASES)} "
                f"Names: {', '.join(ALIASES)}."
            )
        if not has(values, path):
            found = _columns_of(values)
            raise DataError(
                f"{source.place}: columns.{name}: no column '{path}' in the first {len(values)} rows."
                f"{did_you_mean(path, found)} Columns found: {', '.join(found)}."
            )


def _columns_of(values: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(str(name) for value in values for name in value))


def _no_match(source: Source, values: Sequence[Mapping[str, Any]]) -> str:
    found = ", ".join(_columns_of(values)) or "none"
    asked = "no layout fits" if source.layout == "auto" else f"layout '{source.layout}' does not fit"
    # the last of the table ask for the most particular columns
    for name, lacking, what in (layout.half for layout in reversed(ROW_LAYOUTS) if layout.half is not None):
        there = next((path for tier in ALIASES[name] for path in tier if has(values, path)), None)
        if there is not None and not find(lacking, ALIASES, values, source):
            return (
                f"{source.place}: {asked} the columns found ({found}). '{there}' is there, but no {what}. "
                f"Add a column {lacking}, or map one with columns: {{{lacking}: …}}."
            )
    hint = ""
    if all(find(name, ALIASES, values, source) for name in ("chosen", "rejected")):
        hint = " 'chosen' and 'rejected' are there, but no prompt that goes with them."
    known = "; ".join(f"{name}: {needs}" for name, needs in LAYOUTS.items())
    return (
        f"{source.place}: {asked} the columns found ({found}).{hint} Map them with columns: "
        f"{{prompt: …, chosen: …, rejected: …}}. Layouts are {known}."
    )
