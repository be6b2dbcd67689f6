"""One row as it was read, and the ways in which it can be bad."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prefopt.errors import DataError
from prefopt.words import shown

MAX_RAW = 65_536
"""Characters of a bad row kept for the quarantine file; more than this cannot be repaired by hand."""


class RowError(Exception):
    """One row cannot be used; caught where rows are counted, never shown as a traceback.

    Args:
        column: the column at fault as the user knows it, or "" for the row as a whole.
        why: what is wrong, with the value.
    """

    def __init__(self, column: str, why: str) -> None:
        super().__init__(f"{column}: {why}" if column else why)
        self.column = column
        self.why = why


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that was left out: where, in which column, why, and what stood there."""

    origin: str
    column: str
    why: str
    raw: str

    def describe(self) -> str:
        """Return ``file:line: column: why`` on one line, control characters spelled out."""
        line = ": ".join(part for part in (self.origin, self.column, self.why) if part)
        return shown(line).replace("\n", "\\n")


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row of a source: its place, its columns, or the reason why it has none.

    ``value`` is None exactly where ``error`` is set. ``text`` is what stood in the file, None where
    there is no text (parquet, arrow, hub).
    """

    origin: str
    value: Mapping[str, Any] | None
    text: str | None = None
    error: RowError | None = None

    def bad(self, error: RowError) -> BadRow:
        """Return this row as a bad one."""
        raw = self.text
        if raw is None:
            raw = json.dumps(self.value, ensure_ascii=False, default=str)
        if len(raw) > MAX_RAW:
            raw = raw[:MAX_RAW] + f"… ({len(raw)} characters)"
        return BadRow(self.origin, error.column, error.why, raw)


def file_error(place: str, what: str, way_out: str) -> DataError:
    """Build the error for a source that cannot be read at all."""
    return DataError(f"{place}: {one_line(what)}. {way_out}")


def one_line(text: object, limit: int = 200) -> str:
    """Return ``text`` on one line, without a closing full stop, cut to ``limit`` characters."""
    words = " ".join(str(text).split()).rstrip(".")
    return words if len(words) <= limit else words[: limit - 1] + "…"
