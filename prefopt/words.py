"""How messages say things, everywhere alike: names that were meant, values as in a recipe, no control codes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

# C0 and C1 but for tab and newline, separators of lines, overrides of direction, and halves of characters
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

DEEPEST = 8
"""Blocks and lists inside each other that a message shows."""


def nearest(word: str, names: Iterable[str]) -> str | None:
    """Return the name that ``word`` was probably meant to be, or None where none is like it.

    Capital letters and dashes make no difference: "LD-DPO" is near to "ld_dpo".
    """
    known = {_plain(name): name for name in names}
    found = get_close_matches(_plain(word), list(known), n=1)
    return known[found[0]] if found else None


def did_you_mean(word: object, names: Iterable[str]) -> str:
    """Return " Did you mean 'dpo'?" to put behind a sentence, or "" where nothing is like ``word``."""
    found = nearest(str(word), names)
    return "" if found is None else f" Did you mean '{found}'?"


def spelled(value: Any, most: int | None = None) -> str:
    """Write a value as a recipe spells it, on one line: null, true, 'text', {name: 'dpo'}.

    Args:
        value: a scalar, or lists and dicts of such; what lies deeper than eight of them is left out.
        most: cut what is longer than this many characters.
    """
    text = " ".join(_spelled(value, DEEPEST).split("\n"))
    return text if most is None else cut(text, most)


def _spelled(value: Any, depth: int) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, (Mapping, list, tuple)):
        return repr(value)
    if depth == 0:
        return "…"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_spelled(each, depth - 1)}" for key, each in value.items()) + "}"
    return "[" + ", ".join(_spelled(each, depth - 1) for each in value) + "]"


def cut(text: str, most: int) -> str:
    """Return ``text``, its end replaced by an ellipsis where it is longer than ``most`` characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def shown(text: str) -> str:
    """Return ``text`` with control characters spelled out (ESC as \\x1b), for a terminal that would obey them."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def _plain(word: str) -> str:
    return word.lower().replace("-", "_")
