"""What is said where the settings of a source do not fit its rows, or no layout does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prefopt.data.rows.convert import MISSING, cell_at, sequence
from prefopt.data.rows.layouts.columns import BEFORE_PROMPT, NAMED_TOGETHER, find, has
from prefopt.data.rows.layouts.layout import RowLayout
from prefopt.data.rows.layouts.table import ALIASES, LAYOUTS, ROW_LAYOUTS
from prefopt.data.rows.loss_needs import READ_FOR, Needs
from prefopt.data.rows.messages import is_messages, is_texts, opened
from prefopt.data.rows.source import Source
from prefopt.data.rows.turn_names import TurnNames
from prefopt.errors import DataError
from prefopt.words import did_you_mean

Rows = Sequence[Mapping[str, Any]]

_PARTNERS = {"chosen_score": "rejected_score", "rejected_score": "chosen_score"}


def check_names(source: Source, values: Rows, raw: Rows) -> None:
    """Refuse settings that name something which does not exist.

    Args:
        source: with its settings.
        values: the first rows, as they are read.
        raw: the same as they stand in the source.

    Raises:
        DataError: says what is unknown, and what may be meant.
    """
    if source.layout != "auto" and source.layout not in LAYOUTS:
        raise DataError(
            f"{source.place}: no layout '{source.layout}'.{did_you_mean(source.layout, LAYOUTS)} "
            f"Layouts: auto, {', '.join(LAYOUTS)}."
        )
    for name, path in (source.columns or {}).items():
        _check_column(source, raw if path is False else values, name, path)
    if source.turn is None:
        return
    names = TurnNames.of(source.turn)
    if not any(names.is_in(cell) for value in raw for cell in value.values()):
        keys = " and ".join(f"'{key}'" for key in (names.role or "role", names.content or "content"))
        raise DataError(f"{source.place}: turn: no message with {keys} in the first {len(values)} rows.")


def _check_column(source: Source, values: Rows, name: str, path: str | bool) -> None:
    found = _columns_of(values)
    if name not in ALIASES and not (path is False and (name in found or name in BEFORE_PROMPT)):
        known = {**ALIASES, **dict.fromkeys(found)} if path is False else ALIASES
        raise DataError(
            f"{source.place}: columns.{name} is no column that a layout reads.{did_you_mean(name, known)} "
            f"Names: {', '.join(ALIASES)}."
        )
    if isinstance(path, str) and all(cell_at(value, path) is MISSING for value in values):
        raise DataError(
            f"{source.place}: columns.{name}: no column '{path}' in the first {len(values)} rows."
            f"{did_you_mean(path, found)} Columns found: {', '.join(found)}."
        )


def check_given(layout: RowLayout, needs: Needs) -> RowLayout:
    """Return a layout in which every setting of its source has a use.

    Raises:
        DataError: names one that has none.
    """
    source = layout.source
    unused = [name for name, path in (source.columns or {}).items() if path and name not in layout.columns]
    if unused and unused[0] in READ_FOR and not needs.reads(unused[0]):
        raise DataError(f"{source.place}: columns.{unused[0]}: {needs.loss} does not read it. Take it out.")
    if unused:
        raise DataError(
            f"{source.place}: columns.{unused[0]} has no use in layout '{layout.name}', which reads "
            f"{needs_of(layout)}. Remove it or name another layout."
        )
    if source.better_is is not None and "better" not in layout.columns:
        raise DataError(
            f"{source.place}: better_is has no use in layout '{layout.name}', which reads {needs_of(layout)}. "
            f"Map the column that it explains, columns: {{better: …}}, or take it out."
        )
    for name, partner in _PARTNERS.items():
        if (source.columns or {}).get(name) and name in layout.columns and partner not in layout.columns:
            raise DataError(
                f"{source.place}: columns.{name} has no use without {partner}. Map both, or take it out."
            )
    return layout


def needs_of(layout: RowLayout) -> str:
    """Return the columns that a layout has found."""
    return ", ".join(dict.fromkeys(layout.columns.values()))


def no_match(source: Source, values: Rows, natural: str | None = None) -> str:
    """Say that no layout fits, and what is lacking.

    Args:
        source: with its settings.
        values: the first rows.
        natural: the form that the rows have, where only the one asked for does not fit.
    """
    found = ", ".join(_columns_of(values)) or "none"
    asked = "no layout fits" if source.layout == "auto" else f"layout '{source.layout}' does not fit"
    start = f"{source.place}: {asked} the columns found ({found})."
    if natural is not None:
        return f"{start} The rows are of the form '{natural}'. Name it as data.layout, or leave layout out."
    hint = next((hint for find_one in _HINTS for hint in find_one(source, values)), "")
    if hint and not hint.endswith(_NO_PROMPT):
        return f"{start} {hint}"
    hint = f" {hint}" if hint else ""
    known = "; ".join(f"{name}: {needs}" for name, needs in LAYOUTS.items())
    return f"{start}{hint} Map them with columns: {{prompt: …, chosen: …, rejected: …}}. Layouts are {known}."


def _unnamed_turns(source: Source, values: Rows) -> Iterator[str]:
    """Find lists of objects that look like messages, but with other keys."""
    for name, cell in _cells(source, values):
        items = sequence(cell)
        first: Any = items[0] if isinstance(items, list) and items else None
        texts = (
            [key for key, item in first.items() if isinstance(item, str)]
            if isinstance(first, Mapping)
            else []
        )
        if len(texts) > 1 and not is_messages(items):
            keys = ", ".join(map(str, first))
            yield (
                f"'{name}' holds objects with the keys {keys}, not messages with role and content. Say which is "
                f"which: turn: {{role: {texts[0]}, content: {texts[1]}}}, say."
            )


def _halves(source: Source, values: Rows) -> Iterator[str]:
    """Find a column that is of no use without another; the last layouts ask for the most particular ones."""
    for half in (layout.half for layout in reversed(ROW_LAYOUTS)):
        if half is None or find(half.lacking, ALIASES, values, source):
            continue
        paths = [path for tier in ALIASES[half.there] for path in tier]
        paths += [kind[0] for names, kinds in NAMED_TOGETHER.items() if half.there in names for kind in kinds]
        given = (source.columns or {}).get(half.there)
        there = next((path for path in ([given] if given else paths) if has(values, path)), None)
        if there is not None:
            lacking = half.lacking
            yield (
                f"'{there}' is there, but no {half.what}. "
                f"Add a column {lacking}, or map one with columns: {{{lacking}: …}}."
            )


def _odd_cells(source: Source, values: Rows) -> Iterator[str]:
    """Find columns that are there, but of a kind that is neither text nor messages."""
    for name in ("prompt", "chosen", "rejected", "first", "second", "completion"):
        path = find(name, ALIASES, values, source)
        cell: Any = next((cell_at(value, path) for value in values if path and has([value], path)), None)
        if path is None or isinstance(cell, str) or is_messages(opened(cell)):
            continue
        if is_texts(cell):
            yield f"'{path}' is a list of {len(cell)} texts. Name one: columns: {{{name}: {path}.0}}."
        elif isinstance(cell, Mapping) and cell:
            inner = next((key for key, item in cell.items() if isinstance(item, str)), next(iter(cell)))
            yield (
                f"'{path}' is an object with {', '.join(map(str, cell))}. Name a part of it: columns: "
                f"{{{name}: {path}.{inner}}}, say."
            )


def _no_prompt(source: Source, values: Rows) -> Iterator[str]:
    """Find two answers that are told apart, where only the prompt can be lacking."""

    def paths(*names: str) -> list[str | None]:
        return [find(name, ALIASES, values, source) for name in names]

    decided = (("better",), ("first_score", "second_score"), ("first_wins", "second_wins"))
    if all(found := paths("chosen", "rejected")) or (
        any(all(paths(*names)) for names in decided) and all(found := paths("first", "second"))
    ):
        yield f"'{found[0]}' and '{found[1]}' are there, but no {_NO_PROMPT}"


_NO_PROMPT = "prompt that goes with them."
_HINTS = (_unnamed_turns, _odd_cells, _no_prompt, _halves)
"""Looked for in this order; the first that is found is said."""


def _cells(source: Source, values: Rows) -> Iterator[tuple[str, Any]]:
    """Yield the first cell of every column that may hold a conversation."""
    names = dict.fromkeys(name for value in values for name in value)
    mapped = [path for path in (source.columns or {}).values() if path]
    for name in (*mapped, *names):
        cell = next((cell_at(value, name) for value in values if has([value], name)), None)
        yield str(name), cell


def _columns_of(values: Rows) -> list[str]:
    return list(dict.fromkeys(str(name) for value in values for name in value))
