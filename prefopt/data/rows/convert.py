"""Check and convert the cells of a row: text, messages, numbers, labels. Each fault is a ``RowError``."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from prefopt.data.rows.files import parse_json
from prefopt.data.rows.raw_rows import RowError
from prefopt.words import spelled

MISSING = object()
"""What ``cell_at`` returns where a row has no such column."""

_ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
}
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
_TURN = re.compile(r"\n\n(Human|Assistant):")


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


def opened(value: Any) -> Any:
    """Return a cell with messages; those written as JSON text (as in CSV) are opened, text stays text."""
    found = sequence(value)
    return found if is_messages(found) else value


def sequence(value: Any) -> Any:
    """Return a cell with a list or object; one written as JSON text is opened."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return parse_json(value)
        except RowError:
            return value
    return value


def is_messages(value: Any) -> bool:
    """Whether a cell is one message or a list of messages, by its first element."""
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, Mapping) and (
        {"role", "content"} <= set(first) or {"from", "value"} <= set(first)
    )


def is_sharegpt(value: Any) -> bool:
    """Whether a cell holds ShareGPT messages."""
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, Mapping) and {"from", "value"} <= set(first)


def is_transcript(value: Any) -> bool:
    """Whether a cell is a whole Human/Assistant transcript."""
    return (
        isinstance(value, str)
        and value.lstrip().startswith("Human:")
        and _TURN.search(value, len(value) - len(value.lstrip()) + 1) is not None
    )


def messages(value: Any, column: str) -> list[dict[str, Any]]:
    """Return a cell as a list of messages with role and content.

    A single message is a list of one. ShareGPT's ``from``/``value`` and its role names are
    translated; keys without a value are dropped; a content of text parts becomes one text.
    """
    if value is MISSING or value is None:
        raise RowError(column, "missing")
    items = [value] if isinstance(value, Mapping) else value
    if not isinstance(items, list | tuple):
        raise RowError(
            column, f"must be a list of messages, found {type(value).__name__} {spelled(value, 40)}"
        )
    if not items:
        raise RowError(column, "empty")
    return [_message(item, f"{column}.{index}") for index, item in enumerate(items)]


def transcript(value: Any, column: str) -> list[dict[str, Any]]:
    """Return a Human/Assistant transcript as messages; blanks around a turn's text are not kept."""
    whole = "\n\n" + text(value, column).lstrip()
    before, *parts = _TURN.split(whole)
    if before.strip() or not parts:
        raise RowError(column, f"must begin with 'Human:' or 'Assistant:', found {spelled(whole[2:], 40)}")
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[who], "content": said.strip()}
        for who, said in zip(parts[::2], parts[1::2], strict=True)
    ]


def _message(item: Any, column: str) -> dict[str, Any]:
    if not isinstance(item, Mapping):
        raise RowError(column, f"must be a message, found {type(item).__name__} {spelled(item, 40)}")
    role_key, content_key = (
        ("from", "value") if "from" in item and "role" not in item else ("role", "content")
    )
    name = item.get(role_key)
    if not isinstance(name, str) or name.lower() not in _ROLES:
        raise RowError(f"{column}.{role_key}", f"is no known role: {spelled(name, 60)}")
    role = _ROLES[name.lower()]
    rest = {k: v for k, v in item.items() if k not in (role_key, content_key) and v is not None}
    content = _content(item.get(content_key), f"{column}.{content_key}")
    if name.lower() == "function_call":
        rest["tool_calls"] = _function_call(content, f"{column}.{content_key}")
        content = ""
    if content is None:
        if not rest.get("tool_calls"):
            raise RowError(f"{column}.{content_key}", "missing")
        content = ""
    return {"role": role, "content": content, **_with_weight(rest, column)}


def _with_weight(rest: dict[str, Any], column: str) -> dict[str, Any]:
    """Check how much a turn counts; ``train: false`` becomes ``weight: 0``."""
    if "train" in rest:
        if "weight" in rest:
            raise RowError(f"{column}.train", "says what 'weight' says too. Keep one of them")
        train = rest.pop("train")
        if not isinstance(train, bool):
            raise RowError(f"{column}.train", f"must be true or false, found {spelled(train, 40)}")
        return {**rest, "weight": float(train)}
    if "weight" in rest:
        weight = number(rest["weight"], f"{column}.weight")
        if weight < 0:
            raise RowError(f"{column}.weight", f"must not be negative, found {weight:g}")
        return {**rest, "weight": weight}
    return rest


def _content(value: Any, column: str) -> str | None:
    if value is None or isinstance(value, str):
        return value if value is None else clean(value, column)
    if not isinstance(value, list | tuple):
        raise RowError(column, f"must be text, found {type(value).__name__} {spelled(value, 40)}")
    parts = []
    for part in value:
        if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, Mapping) else part
            raise RowError(column, f"must be text only, found a part of type {spelled(kind, 40)}")
        parts.append(part["text"])
    return clean("".join(parts), column)


def _function_call(content: str | None, column: str) -> list[dict[str, Any]]:
    call = json_cell(content or "", column)
    calls = call if isinstance(call, list) else [call]
    for item in calls:
        if not isinstance(item, Mapping) or not isinstance(item.get("name"), str):
            raise RowError(column, f"must be a call with name and arguments, found {spelled(item, 40)}")
    return [{"type": "function", "function": dict(item)} for item in calls]


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
