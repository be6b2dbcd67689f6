"""Ranked answers: several to one prompt, each with a score or a rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prefopt.data.rows.convert import MISSING, number, sequence
from prefopt.data.rows.layouts.columns import NEEDS_TURNS
from prefopt.data.rows.layouts.fields import Fields
from prefopt.data.rows.layouts.forms import form_of_answers
from prefopt.data.rows.layouts.layout import Half, Layout
from prefopt.data.rows.layouts.texts import compared, prompt_and_answers
from prefopt.data.rows.messages import is_messages
from prefopt.data.rows.raw_rows import RowError
from prefopt.types import Comparison, Preference
from prefopt.words import spelled

_TEXT_KEYS = ("response", "text", "answer", "completion", "output", "content")
_SCORE_KEYS = ("score", "overall_score", "rating", "reward")
_RANK_KEYS = ("rank",)


def _read(row: Fields) -> Comparison:
    column = row.column("responses")
    items = sequence(row.cell("responses"))
    if not isinstance(items, list):
        raise RowError(
            column, "missing" if items is MISSING else f"must be a list, found {spelled(items, 40)}"
        )
    if len(items) < 2:
        raise RowError(column, f"needs at least two answers, found {len(items)}")
    scores = _scores(row, items, column)
    names = [f"{column}.{index}" for index in range(len(items))]
    for item, name in zip(items, names, strict=True):
        _refuse_two_texts(item, name)
    texts = [_inner_text(item) for item in items]
    cells = [row.opened("responses", cell, name) for cell, name in zip(texts, names, strict=True)]
    read = prompt_and_answers(row, names, cells)
    best = max(range(len(scores)), key=lambda index: scores[index])
    weight = row.weight()
    preferences = tuple(
        Preference(best, index, weight, scores[best] - scores[index])
        for index in range(len(scores))
        if index != best
    )
    return compared(row, read, preferences, scores)


def _inner_text(item: Any) -> Any:
    """Return what one of the answers says, MISSING where none of the usual keys has it."""
    if isinstance(item, Mapping) and not is_messages(item):
        return next((item[key] for key in _texts_in(item)), MISSING)
    return item


def _texts_in(item: Mapping[str, Any]) -> list[str]:
    return [key for key in _TEXT_KEYS if item.get(key) is not None]


def _refuse_two_texts(item: Any, name: str) -> None:
    """Refuse an answer that says two things."""
    found = _texts_in(item) if isinstance(item, Mapping) and not is_messages(item) else []
    for key in found[1:]:
        if item[key] != item[found[0]]:
            raise RowError(name, f"holds '{found[0]}' and '{key}', and either could be the answer")


def _scores(row: Fields, items: Sequence[Any], column: str) -> tuple[float, ...]:
    for name, sign in (("scores", 1.0), ("ranks", -1.0)):
        values = sequence(row.cell(name))
        if values is MISSING:
            continue
        if not isinstance(values, list) or len(values) != len(items):
            found = f"{len(values)} values" if isinstance(values, list) else spelled(values, 40)
            raise RowError(row.column(name), f"needs one number per answer ({len(items)}), found {found}")
        cells = [(value, f"{row.column(name)}.{index}") for index, value in enumerate(values)]
        given = tuple(sign * number(value, at) for value, at in cells)
        if name == "scores":
            _compare_ranks(row, given)
        return given
    return _inner_scores(items, column)


def _inner_scores(items: Sequence[Any], column: str) -> tuple[float, ...]:
    """Return the scores inside answers, all by the same key: others may count otherwise."""
    keys = [
        [
            key
            for key in (*_SCORE_KEYS, *_RANK_KEYS)
            if isinstance(item, Mapping) and item.get(key) is not None
        ]
        for item in items
    ]
    for index, own in enumerate(keys):
        if not own:
            raise RowError(f"{column}.{index}", "has neither a score nor a rank")
    shared = [key for key in keys[0] if all(key in own for own in keys)]
    if not shared:
        other = next(index for index, own in enumerate(keys) if keys[0][0] not in own)
        why = f"has no '{keys[0][0]}', by which '{column}.0' is scored, but '{keys[other][0]}'"
        raise RowError(f"{column}.{other}", why)
    given = {
        key: [number(item[key], f"{column}.{n}.{key}") for n, item in enumerate(items)] for key in shared
    }
    scores = [-each if shared[0] in _RANK_KEYS else each for each in given[shared[0]]]
    for key in _RANK_KEYS:
        if key in given and scores[given[key].index(min(given[key]))] != max(scores):
            raise RowError(f"{column}.0.{key}", f"calls another answer the best than '{shared[0]}'")
    return tuple(scores)


def _compare_ranks(row: Fields, scores: Sequence[float]) -> None:
    """Refuse ranks that say another answer is best than the scores."""
    ranks = sequence(row.cell("ranks"))
    if isinstance(ranks, list) and len(ranks) == len(scores):
        first = min(range(len(ranks)), key=lambda index: number(ranks[index], row.column("ranks")))
        if scores[first] != max(scores):
            why = f"calls another answer the best than '{row.column('scores')}'. Keep one: columns: {{ranks: false}}"
            raise RowError(row.column("ranks"), why)


def _form_of(cells: Mapping[str, Any]) -> str | None:
    answers = cells["responses"]
    if not isinstance(answers, list) or not answers:
        return None
    inside = isinstance(answers[0], Mapping) and any(key in answers[0] for key in (*_SCORE_KEYS, *_RANK_KEYS))
    if not inside and not any(isinstance(cells.get(name), list) for name in ("scores", "ranks")):
        return None
    if inside:
        answers = [text for item in answers if (text := _inner_text(item)) is not MISSING] or [""]
    return form_of_answers(cells["prompt"], answers)


RANKED = Layout(
    name="ranked",
    described="prompt, responses and scores or ranks",
    required=("prompt", "responses"),
    optional=("scores", "ranks", *NEEDS_TURNS, "weight", "gold", "prompt_embedding"),
    lists=("responses", "scores", "ranks"),
    aliases={
        "responses": (("responses",), ("completions", "answers")),
        "scores": (("scores",), ("ratings", "rewards")),
        "ranks": (("ranks",), ("rank", "ranking")),
    },
    gives_way=False,
    compares=True,
    gives=lambda layout: {"scores", "margin"},
    notes=lambda layout: [],
    half=Half("responses", "scores", "number for each answer"),
    form_of=_form_of,
    read=_read,
)
