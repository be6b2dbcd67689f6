"""Check and convert the cells of a row: text, numbers, labels, lists. Each fault is a ``RowError``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from prefopt.data.rows.files import parse_json
from prefopt.data.rows.raw_rows import RowError
from prefopt.words import spelled

MISSING = object()
"""What ``cell_at`` returns where a row has no such column."""

_LABELS: dict[Any, bool] = {
    True: True,
    False: False,
    "true": True,
    "false": False,
    "1": True,
    "0": False,
    "desirable": True,
    "undesirable": False,
    "yes": True,
    "no": False,
}


def cell_at(row: Mapping[str, Any], path: str) -> Any:
    """Return the cell at a dotted ``path`` (``answers.0.text``), or MISSING."""
    if path in row:
        return row[path]
    value: Any = row
    for step in path.split("."):
        value = sequence(value)
        if isinstance(value, Mapping) and step in value:
            value = value[step]
        elif isinstance(value, list) and step.isdecimal() and int(step) < len(value):
            value = value[int(step)]
        else:
            return MISSING
    return value


def text(value: Any, column: str) -> str:
    """Return a cell as non-empty text."""
    if value is MISSING or value is None:
        raise RowError(column, "missing")
    if not isinstance(value, str):
        raise RowError(column, f"must be text, found {type(value).__name__} {spelled(value, 40)}")
    if not value.strip():
        raise RowError(column, "empty")
    return clean(value, column)


def clean(value: str, column: str) -> str:
    """Return ``value`` if a tokenizer can take every character of it."""
    if "\0" in value:
        raise RowError(column, f"holds a NUL character at {value.index(chr(0)) + 1}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowError(column, f"holds half a character (not valid Unicode) at {error.start + 1}") from None
    return value


def number(value: Any, column: str) -> float:
    """Return a cell as a finite number; text is taken too, because CSV has nothing else."""
    if value is MISSING or value is None or value == "":
        raise RowError(column, "missing")
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise RowError(column, f"must be a number, found {type(value).__name__} {spelled(value, 40)}")
    try:
        result = float(value)
    except (ValueError, OverflowError):
        raise RowError(column, f"must be a number, found {spelled(value, 40)}") from None
    if not math.isfinite(result):
        raise RowError(column, f"must be finite, found {spelled(value, 40)}")
    return result


def numbers(value: Any, column: str) -> npt.NDArray[np.float32]:
    """Return a cell as a vector of finite numbers; a list in JSON text, as in CSV, is opened."""
    if value is MISSING or value is None or value == "":
        raise RowError(column, "missing")
    items = sequence(value)
    if not isinstance(items, list) or not items:
        raise RowError(
            column, f"must be a list of numbers, found {type(value).__name__} {spelled(value, 40)}"
        )
    for index, item in enumerate(items):
        if isinstance(item, bool) or not isinstance(item, int | float):
            why = f"must be a number, found {type(item).__name__} {spelled(item, 40)}"
            raise RowError(f"{column}.{index}", why)
    try:
        with np.errstate(over="raise"):
            vector = np.array(items, dtype=np.float32)
    except (OverflowError, FloatingPointError):
        raise RowError(column, "holds a number too large for float32") from None
    if not np.isfinite(vector).all():
        raise RowError(column, "must hold finite numbers only")
    return vector


def label(value: Any, column: str) -> bool:
    """Return a cell as desirable or not: a boolean, 0 or 1, or the usual words."""
    if value is MISSING or value is None or value == "":
        raise RowError(column, "missing")
    key = value.strip().lower() if isinstance(value, str) else value
    if isinstance(key, bool | int | float | str) and key in _LABELS:
        return _LABELS[key]
    raise RowError(column, f"must be true or false, found {spelled(value, 40)}")


def json_cell(value: str, column: str) -> Any:
    """Return the JSON inside a text cell, as CSV files hold lists."""
    try:
        return parse_json(value)
    except RowError as error:
        raise RowError(column, error.why) from None


def sequence(value: Any) -> Any:
    """Return a cell with a list or object; one written as JSON text is opened."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return parse_json(value)
        except RowError:
            return value
    return value


def tools(value: Any, column: str) -> list[Any] | None:
    """Return the tools of a row, or None where it has none."""
    if value is MISSING or value is None or value in ("", []):
        return None
    opened = json_cell(value, column) if isinstance(value, str) else value
    if not isinstance(opened, list) or not all(isinstance(tool, Mapping) for tool in opened):
        raise RowError(
            column, f"must be a list of tool descriptions, found {spelled(json.dumps(opened), 60)}"
        )
    return opened
