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
        return next((item[key] for key in _TEXT_KEYS if item.get(key) is not None), MISSING)
    return item


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
    scores = []
    for index, item in enumerate(items):
        inner = item if isinstance(item, Mapping) else {}
        key = next((key for key in (*_SCORE_KEYS, *_RANK_KEYS) if inner.get(key) is not None), None)
        if key is None:
            raise RowError(f"{column}.{index}", "has neither a score nor a rank")
        scores.append((-1.0 if key in _RANK_KEYS else 1.0) * number(inner[key], f"{column}.{index}.{key}"))
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
