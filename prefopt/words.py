"""How messages say things, everywhere alike: the name that was probably meant, and values as a recipe spells them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any


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
    """Write a value as a recipe spells it: null, true, 'text', {name: 'dpo'}.

    Args:
        value: a scalar, or lists and dicts of such.
        most: cut what is longer than this many characters.
    """
    if value is None:
        text = "null"
    elif isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, Mapping):
        text = "{" + ", ".join(f"{key}: {spelled(each)}" for key, each in value.items()) + "}"
    elif isinstance(value, (list, tuple)):
        text = "[" + ", ".join(map(spelled, value)) + "]"
    else:
        text = repr(value)
    return text if most is None else cut(text, most)


def cut(text: str, most: int) -> str:
    """Return ``text``, its end replaced by an ellipsis where it is longer than ``most`` characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _plain(word: str) -> str:
    return word.lower().replace("-", "_")
