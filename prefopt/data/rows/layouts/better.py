"""What a cell says of two answers: the first is better, the second, or neither."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from prefopt.data.rows.raw_rows import RowError
from prefopt.words import spelled

_TIES = ("tie", "both", "equal", "none", "draw", "tie (bothbad)", "both_bad")
_LETTERS = ("a", "b")
_CLAIM = re.compile(r"(^|[_.])(is|labels?|wins?|won|winner)([_.]|$)")
"""Names whose 1 may well say that something is true, not that it is the second of two."""

Meaning = Mapping[str, Sequence[str | int | bool]]


def side_of(value: Any, column: str, names: tuple[str, str], meaning: Meaning | None) -> float:
    """Return 1 for the first answer, -1 for the second and 0 for a tie.

    Args:
        value: the cell.
        column: what it is called.
        names: the columns of the answers.
        meaning: what values stand for; None goes by the names of the columns, letters and, where nothing
            speaks against it, an index from 0.

    Raises:
        RowError: the value says nothing, or could mean either.
    """
    word = _word(value)
    if meaning is not None:
        for side, sign in (("first", 1.0), ("second", -1.0), ("tie", 0.0)):
            if word in map(_word, meaning.get(side, ())):
                return sign
        raise RowError(column, f"is none of the values that better_is names, found {spelled(value, 40)}")
    if word in _TIES:
        return 0.0
    for sign, name, part, other in zip(
        (1.0, -1.0), names, _own_parts(names), ("first", "second"), strict=True
    ):
        if word in (name.lower(), part, f"model_{part}", other):
            return sign
    plain = word.removeprefix("model_")
    if plain in _LETTERS:
        return 1.0 if plain == "a" else -1.0
    if word in ("0", "1") and counts_from_zero(names, column):
        return 1.0 if word == "0" else -1.0
    why = f"names neither '{names[0]}' nor '{names[1]}', found {spelled(value, 40)}"
    raise RowError(column, why + _hint(word))


def counts_from_zero(names: tuple[str, str], column: str) -> bool:
    """Whether 0 and 1 are taken as an index although the names of the answers do not count.

    Answers with the letters a and b have names already, and a column such as ``label`` may say 1 for the first.
    """
    parts = _own_parts(names)
    return (
        not any(part.isdecimal() for part in parts)
        and parts != _LETTERS
        and not _CLAIM.search(column.lower())
    )


def _hint(word: str) -> str:
    if word in ("0", "1", "true", "false"):
        return (
            f". Say what it means, as better_is: {{first: {word}, second: {_OPPOSITE[word]}}} or the reverse"
        )
    if word == "2":
        return ". Say what it means, as better_is: {first: 1, second: 2}"
    return ". Say what values mean: better_is: {first: …, second: …, tie: …}"


_OPPOSITE = {"0": "1", "1": "0", "true": "false", "false": "true"}


def _word(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip().lower()


def _own_parts(names: tuple[str, str]) -> tuple[str, str]:
    """Return what tells two names apart: "a" and "b" of ``answer_a`` and ``answer_b``."""
    first, second = (re.findall(r"\d+|[^\W\d_]+", name.lower()) for name in names)
    while len(first) > 1 and len(second) > 1 and first[0] == second[0]:
        first, second = first[1:], second[1:]
    while len(first) > 1 and len(second) > 1 and first[-1] == second[-1]:
        first, second = first[:-1], second[:-1]
    return "_".join(first), "_".join(second)
