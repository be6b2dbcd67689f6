"""Decide which layout the rows of a source have, from their first ones, and read each row by it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from prefopt.data.rows.convert import MISSING, cell_at, sequence
from prefopt.data.rows.layouts.columns import (
    BEFORE_PROMPT,
    NEEDS_TURNS,
    TEXTS,
    find,
    is_unread,
)
from prefopt.data.rows.layouts.fields import Fields
from prefopt.data.rows.layouts.forms import FORMS
from prefopt.data.rows.layouts.layout import Layout, RowLayout
from prefopt.data.rows.layouts.refusals import check_given, check_names, needs_of, no_match
from prefopt.data.rows.layouts.table import ALIASES, ROW_LAYOUTS
from prefopt.data.rows.layouts.texts import refuse_media
from prefopt.data.rows.loss_needs import PAIR_NEEDS, READ_FOR, Needs
from prefopt.data.rows.messages import opened
from prefopt.data.rows.raw_rows import RawRow, RowError
from prefopt.data.rows.source import Source
from prefopt.data.rows.turn_names import TurnNames
from prefopt.errors import DataError
from prefopt.types import Comparison

Rows = Sequence[Mapping[str, Any]]


def detect(
    rows: Sequence[RawRow],
    source: Source,
    needs: Needs = PAIR_NEEDS,
    *,
    has_template: bool = True,
    as_turns: bool = False,
) -> RowLayout:
    """Return the one layout that fits the first rows of ``source``.

    Rows that fit no layout are passed over, so that one bad row at the top does not decide. Columns that
    only some losses read are looked for only if ``needs`` asks for them.

    Args:
        rows: the first ones.
        source: with its settings.
        needs: of the loss.
        has_template: messages can be rendered.
        as_turns: a later row has what only messages have a place for, so that plain text becomes messages.

    Raises:
        DataError: no layout or more than one fits, or ``source.columns`` or ``source.layout`` name
            something that the rows do not have.
    """
    values = list(_values(rows, source))
    if not values:
        first = next((row.bad(row.error).describe() for row in rows if row.error), source.place)
        raise DataError(
            f"{first}. No readable row among the first {len(rows)}. Give JSON objects or a table."
        )
    check_names(source, values, [row.value for row in rows if row.value is not None])
    for value in values:
        found = list(_candidates(value, values, source, needs))
        if len(found) == 1:
            return check_given(_with_form(found[0], values, has_template, as_turns), needs)
        if found:
            names = " and ".join(f"'{layout.name}' ({needs_of(layout)})" for layout in found)
            raise DataError(
                f"{source.place}: the columns fit more than one layout, {names}. Name one as data.layout."
            )
    raise DataError(no_match(source, values))


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
    row = _as_read(row, layout.source)
    _refuse_unread(layout, row)
    fields = Fields(layout, row, needs, origin, row_id)
    refuse_media(fields)
    found = layout.layout.read(fields)
    embedding = fields.embedding()
    if embedding is None and not fields.findings:
        return found
    return replace(found, prompt_embedding=embedding, findings=tuple(sorted(fields.findings)))


def becomes_turns(layout: RowLayout, row: Mapping[str, Any]) -> bool:
    """Whether a row has what makes messages of a source that was read as plain text so far."""
    return layout.may_turn and _wants_turns(layout, [row], True)


def _values(rows: Sequence[RawRow], source: Source) -> Iterator[Mapping[str, Any]]:
    """Yield the rows as they are read; one that cannot be is passed over here and refused when it is read."""
    for row in rows:
        try:
            if row.value is not None:
                yield _as_read(row.value, source)
        except RowError:
            continue


def _as_read(row: Mapping[str, Any], source: Source) -> Mapping[str, Any]:
    """Return a row without the columns that are not to be read, its messages under the usual names."""
    for name in source.columns or ():
        if is_unread(name, source) and name not in ALIASES and name in row:
            row = {key: cell for key, cell in row.items() if key != name}
    if source.turn is None:
        return row
    names = TurnNames.of(source.turn)
    return {key: names.usual(cell) for key, cell in row.items()}


def _refuse_unread(layout: RowLayout, row: Mapping[str, Any]) -> None:
    """Refuse text that belongs to the prompt by its name, but that nothing reads."""
    for name, home in BEFORE_PROMPT.items():
        if row.get(name) in (None, "", []) or name in layout.columns.values():
            continue
        way_out = f"map it, columns: {{{home}: {name}}}" if home else "join it to the prompt in the file"
        raise RowError(
            name,
            f"belongs to the prompt, but is not read: {way_out}, or leave it out, columns: {{{name}: false}}",
        )


def _candidates(value: Mapping[str, Any], values: Rows, source: Source, needs: Needs) -> Iterator[RowLayout]:
    count = 0
    named = [layout for layout in ROW_LAYOUTS if layout.name == source.layout]
    for layout in named or ROW_LAYOUTS:
        columns = {name: path for name in layout.required if (path := find(name, ALIASES, [value], source))}
        if len(columns) < len(layout.required) or (layout.gives_way and count):
            continue
        columns |= _optional(layout, columns, values, source, needs)
        json_texts = frozenset(name for name, path in columns.items() if _is_json(name, path, values))
        form = _form(layout, columns, json_texts, value)
        if form:
            count += 1
            yield RowLayout(form, layout, columns, source, tuple(_columns_of(values)), json_texts)


def _optional(
    layout: Layout, required: Mapping[str, str], values: Rows, source: Source, needs: Needs
) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in layout.optional:
        if name in READ_FOR and not needs.reads(name):
            continue
        # a mapped column is there, though it may have no value yet
        path = (source.columns or {}).get(name) or find(name, ALIASES, values, source)
        # a conversation that ends with the answer is no prompt, nor is what is mapped to one a history
        taken = {required.get("chosen")} if name == "prompt" else set[str | None]()
        if name in NEEDS_TURNS:
            taken = {*required.values(), *found.values()}
        if path and path not in taken:
            found[name] = path
    return found


def _is_json(name: str, path: str, values: Rows) -> bool:
    """Whether most texts of a column are messages written as JSON."""
    if name not in TEXTS:
        return False
    cells = [cell_at(value, path) for value in values]
    if name == "responses":
        lists = [sequence(cell) for cell in cells]
        cells = [item for items in lists if isinstance(items, list) for item in items]
    texts = [cell for cell in cells if isinstance(cell, str) and cell.strip()]
    return 2 * sum(opened(text) is not text for text in texts) > len(texts)


def _form(
    layout: Layout, columns: Mapping[str, str], json_texts: frozenset[str], value: Mapping[str, Any]
) -> str | None:
    cells = {name: cell_at(value, path) for name, path in columns.items()}
    for name in cells:
        if name in layout.lists:
            cells[name] = sequence(cells[name])
        elif name in json_texts:
            cells[name] = opened(cells[name])
    return layout.form_of({name: cell for name, cell in cells.items() if cell not in (MISSING, None)})


def _with_form(layout: RowLayout, values: Rows, has_template: bool, as_turns: bool) -> RowLayout:
    """Give the rows the form that the recipe asks for, or else that the source as a whole has."""
    asked, natural = layout.source.layout, layout.form
    if asked in FORMS:
        return replace(layout, form=_asked(layout, values))
    if natural == "transcript" and "prompt" in layout.columns and not has_template:
        natural = "text"
    if natural == "text" and (as_turns or _wants_turns(layout, values, has_template)):
        return replace(layout, form="messages")
    return replace(layout, form=natural, may_turn=natural == "text" and has_template)


def _asked(layout: RowLayout, values: Rows) -> str:
    asked, natural = layout.source.layout, layout.form
    is_text = natural == "text" or (natural == "transcript" and "prompt" in layout.columns)
    fits = {
        "messages": natural in ("messages", "sharegpt", "text"),
        "sharegpt": natural in ("messages", "sharegpt", "text"),
        "transcript": natural == "transcript",
        "text": is_text,
    }
    if fits[asked]:
        return asked
    raise DataError(no_match(layout.source, values, natural))


def _wants_turns(layout: RowLayout, values: Rows, has_template: bool) -> bool:
    """Whether rows have a column that only messages have a place for.

    A system column does wherever it is, for it may be empty at the top alone; the others do with a value.
    """
    paths = {
        name: [layout.columns[name]] if name in layout.columns else layout.names_left(name)
        for name in NEEDS_TURNS
    }
    if not has_template:
        return _has_text(paths["system"], values)
    if any(cell_at(value, path) is not MISSING for value in values for path in paths["system"]):
        return True
    return any(_has_text(paths[name], values) for name in NEEDS_TURNS)


def _has_text(paths: Sequence[str], values: Rows) -> bool:
    empty: tuple[Any, ...] = (MISSING, None, "", "[]", [])
    return any(cell_at(value, path) not in empty for value in values for path in paths)


def _columns_of(values: Rows) -> list[str]:
    return list(dict.fromkeys(str(name) for value in values for name in value))
