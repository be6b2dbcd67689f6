"""Turn one row of a known layout into a ``Comparison``: one small function per shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prefopt.data.layouts import ALIASES, RANK_KEYS, SCORE_KEYS, SPARSE, TEXT_KEYS, Layout
from prefopt.data.raw import RowError, shown
from prefopt.data.values import (
    MISSING,
    is_messages,
    label,
    messages,
    number,
    opened,
    pick,
    sequence,
    text,
    tools,
    transcript,
)
from prefopt.types import Comparison, Preference

Turns = list[dict[str, Any]]

_TIES = ("tie", "both", "equal", "none", "draw", "tie (bothbad)", "both_bad")
_STRENGTHS = ("overall_preference", "preference_strength")


def to_comparison(layout: Layout, row: Mapping[str, Any], row_id: int, origin: str) -> Comparison:
    """Read one row.

    A pair gives one preference, its margin the ``margin`` column or else the gap of the scores.
    K ranked answers give K - 1 preferences, the best answer against each other one, with the gap of
    their scores as margin; ranks count as scores of the opposite sign. The first of equally good
    answers counts as the best. A labelled answer gives none.

    Raises:
        RowError: the row cannot be used; says which column and why.
    """
    return _DECODERS[layout.shape](_Row(layout, row), row_id, origin)


class _Row:
    """The cells of one row under their canonical names."""

    def __init__(self, layout: Layout, value: Mapping[str, Any]) -> None:
        self.layout = layout
        self.value = value

    def cell(self, name: str) -> Any:
        found = pick(self.value, self.column(name))
        return MISSING if found is None else found

    def column(self, name: str) -> str:
        """The path of a column; one that the first rows did not have is looked for in this row too."""
        path = self.layout.columns.get(name)
        if path is None and name in SPARSE:
            path = next((alias for tier in ALIASES[name] for alias in tier if alias in self.value), None)
        return name if path is None else path

    def number(self, name: str) -> float | None:
        value = self.cell(name)
        return None if value is MISSING or value == "" else number(value, self.column(name))

    def weight(self) -> float:
        value = self.number("weight")
        if value is not None and value < 0:
            raise RowError(self.column("weight"), f"must not be negative, found {value:g}")
        return 1.0 if value is None else value

    def probability(self, name: str) -> float | None:
        value = self.number(name)
        if value is not None and not 0 <= value <= 1:
            raise RowError(self.column(name), f"must be a probability from 0 to 1, found {value:g}")
        return value

    def system(self) -> Turns:
        value = self.cell("system")
        if value is MISSING or (isinstance(value, str) and not value.strip()):
            return []
        content = text(value, self.column("system"))
        if not self.layout.is_chat:
            why = "has text, but these rows are read as plain text, where it has no place"
            raise RowError(self.column("system"), why)
        return [{"role": "system", "content": content}]

    def tools(self) -> list[Any] | None:
        found = tools(self.cell("tools"), self.column("tools"))
        if found and not self.layout.is_chat:
            raise RowError(self.column("tools"), "found, but these rows are read as plain text")
        return found

    def prompt_text(self) -> str:
        """The prompt as text; Alpaca's ``input`` follows its ``instruction`` on a new line."""
        prompt = text(self.cell("prompt"), self.column("prompt"))
        extra = self.value.get("input")
        if self.column("prompt") == "instruction" and isinstance(extra, str) and extra.strip():
            prompt += "\n" + text(extra, "input")
        return prompt

    def prompt_turns(self) -> Turns | None:
        value = opened(self.cell("prompt"))
        if value is MISSING:
            return None
        if isinstance(value, str):
            return [*self.system(), {"role": "user", "content": self.prompt_text()}]
        turns = messages(value, self.column("prompt"))
        return turns if turns[0]["role"] == "system" else self.system() + turns


def _pair(row: _Row, row_id: int, origin: str) -> Comparison:
    scores = row.number("chosen_score"), row.number("rejected_score")
    if (scores[0] is None) != (scores[1] is None):
        raise RowError(row.column("chosen_score" if scores[0] is None else "rejected_score"), "missing")
    margin = row.number("margin")
    given = None if scores[0] is None or scores[1] is None else (scores[0], scores[1])
    if margin is None:
        margin = given[0] - given[1] if given else 0.0
    names = [row.column("chosen"), row.column("rejected")]
    prompt, answers = _prompt_and_answers(row, names, [row.cell("chosen"), row.cell("rejected")])
    return Comparison(
        prompt=prompt,
        answers=answers,
        preferences=(Preference(0, 1, row.weight(), margin, row.probability("soft_label")),),
        row_id=row_id,
        origin=origin,
        scores=given,
        tools=row.tools(),
    )


def _labelled(row: _Row, row_id: int, origin: str) -> Comparison:
    desirable = label(row.cell("label"), row.column("label"))
    if "completion" in row.layout.columns:
        prompt, answers = _prompt_and_answers(row, [row.column("completion")], [row.cell("completion")])
    else:
        column = row.column("messages")
        turns = messages(opened(row.cell("messages")), column)
        if turns[0]["role"] != "system":
            turns = row.system() + turns
        asked = max(
            (i for i, turn in enumerate(turns) if turn["role"] not in ("assistant", "tool")), default=-1
        )
        prompt, answers = turns[: asked + 1], (_answer(turns[asked + 1 :], column),)
        if not prompt:
            raise RowError(column, "has no turn before the answer")
    return Comparison(
        prompt=prompt,
        answers=answers,
        preferences=(),
        row_id=row_id,
        origin=origin,
        labels=(desirable,),
        tools=row.tools(),
    )


def _ranked(row: _Row, row_id: int, origin: str) -> Comparison:
    column = row.column("responses")
    items = sequence(row.cell("responses"))
    if not isinstance(items, list):
        raise RowError(column, "missing" if items is MISSING else f"must be a list, found {shown(items, 40)}")
    if len(items) < 2:
        raise RowError(column, f"needs at least two answers, found {len(items)}")
    scores = _scores(row, items, column)
    names = [f"{column}.{index}" for index in range(len(items))]
    cells = [_inner_text(item) for item in items]
    prompt, answers = _prompt_and_answers(row, names, cells)
    best = max(range(len(scores)), key=lambda index: scores[index])
    weight = row.weight()
    return Comparison(
        prompt=prompt,
        answers=answers,
        preferences=tuple(
            Preference(best, index, weight, scores[best] - scores[index])
            for index in range(len(scores))
            if index != best
        ),
        row_id=row_id,
        origin=origin,
        scores=scores,
        tools=row.tools(),
    )


def _choice(row: _Row, row_id: int, origin: str) -> Comparison:
    names = [row.column("first"), row.column("second")]
    prompt, answers = _prompt_and_answers(row, names, [row.cell("first"), row.cell("second")])
    strength = _strength(row, names)
    chosen = 0 if strength >= 0 else 1
    margin = abs(strength) if row.column("better") in _STRENGTHS else 0.0
    return Comparison(
        prompt=prompt,
        answers=answers,
        preferences=(Preference(chosen, 1 - chosen, row.weight(), margin),),
        row_id=row_id,
        origin=origin,
        scores=(0.0, 0.0) if strength == 0 else None,
        tools=row.tools(),
    )


_DECODERS = {"pair": _pair, "labelled": _labelled, "ranked": _ranked, "choice": _choice}


def _prompt_and_answers(
    row: _Row, names: Sequence[str], cells: Sequence[Any]
) -> tuple[str | Turns, tuple[str | Turns, ...]]:
    if not row.layout.is_chat:
        row.system()
        prompt = row.prompt_text()
        return prompt, tuple(text(cell, name) for cell, name in zip(cells, names, strict=True))
    answers = [_turns(row, cell, name) for cell, name in zip(cells, names, strict=True)]
    opening = [answer[0]["role"] for answer in answers]
    if all(role == "assistant" for role in opening):
        turns = row.prompt_turns()
        if turns is None:
            raise RowError(row.column("prompt"), "missing")
    elif "assistant" in opening:
        at = opening.index("assistant")
        raise RowError(
            names[at], "begins with an assistant turn, but the other answer is a whole conversation"
        )
    else:
        turns, answers = _split_conversations(answers, names)
        if turns and turns[0]["role"] != "system":
            turns = row.system() + turns
    if turns[-1]["role"] == "assistant":
        raise RowError(row.column("prompt"), "ends with an assistant turn, so the answers reply to nobody")
    return turns, tuple(_answer(turn, name) for turn, name in zip(answers, names, strict=True))


def _turns(row: _Row, cell: Any, name: str) -> Turns:
    if row.layout.form == "transcript":
        return transcript(cell, name)
    value = opened(cell)
    if value is MISSING or isinstance(value, str):
        return [{"role": "assistant", "content": text(value, name)}]
    return messages(value, name)


def _split_conversations(conversations: list[Turns], names: Sequence[str]) -> tuple[Turns, list[Turns]]:
    """Split whole conversations where they part: before the first assistant turn that differs.

    Assistant turns right before that belong to the answers too, so that a prompt never ends with
    one. Equal conversations part before their last reply.
    """
    shortest = min(conversations, key=len)
    common = 0
    while common < len(shortest) and all(turns[common] == shortest[common] for turns in conversations):
        common += 1
    if common == len(shortest):
        if any(len(turns) > common for turns in conversations):
            at = next(i for i, turns in enumerate(conversations) if turns is shortest)
            raise RowError(names[at], f"is the beginning of '{names[1 - at]}', so its answer would be empty")
        common -= 1
    parting = {turns[common]["role"] for turns in conversations}
    if parting != {"assistant"}:
        role = next(role for role in sorted(parting, reverse=True) if role != "assistant")
        raise RowError(
            names[-1], f"parts from '{names[0]}' at turn {common + 1}, a {role} turn, not in an answer"
        )
    while common and shortest[common - 1]["role"] == "assistant":
        common -= 1
    if not common:
        raise RowError(names[0], "has no turn before the answer")
    return shortest[:common], [turns[common:] for turns in conversations]


def _answer(turns: Turns, column: str) -> Turns:
    if not turns or turns[-1]["role"] != "assistant":
        role = turns[-1]["role"] if turns else "user"
        raise RowError(column, f"ends with a {role} turn, not with an answer")
    if turns[0]["role"] != "assistant":
        raise RowError(column, f"begins with a {turns[0]['role']} turn, not with an answer")
    if not turns[-1]["content"].strip() and not turns[-1].get("tool_calls"):
        raise RowError(column, "empty answer")
    return turns


def _inner_text(item: Any) -> Any:
    if isinstance(item, Mapping) and not is_messages(item):
        return next((item[key] for key in TEXT_KEYS if item.get(key) is not None), MISSING)
    return item


def _scores(row: _Row, items: Sequence[Any], column: str) -> tuple[float, ...]:
    for name, sign in (("scores", 1.0), ("ranks", -1.0)):
        values = sequence(row.cell(name))
        if values is MISSING:
            continue
        if not isinstance(values, list) or len(values) != len(items):
            found = f"{len(values)} values" if isinstance(values, list) else shown(values, 40)
            raise RowError(row.column(name), f"needs one number per answer ({len(items)}), found {found}")
        cells = [(value, f"{row.column(name)}.{index}") for index, value in enumerate(values)]
        return tuple(sign * number(value, at) for value, at in cells)
    scores = []
    for index, item in enumerate(items):
        inner = item if isinstance(item, Mapping) else {}
        key = next((key for key in (*SCORE_KEYS, *RANK_KEYS) if inner.get(key) is not None), None)
        if key is None:
            raise RowError(f"{column}.{index}", "has neither a score nor a rank")
        scores.append((-1.0 if key in RANK_KEYS else 1.0) * number(inner[key], f"{column}.{index}.{key}"))
    return tuple(scores)


def _strength(row: _Row, names: Sequence[str]) -> float:
    """Return how much the first answer is better: positive, negative, or zero for a tie."""
    column, value = row.column("better"), row.cell("better")
    if column in _STRENGTHS:
        # HelpSteer's scale: -3 is "the first is much better", 3 "the second".
        return -number(value, column)
    if value is MISSING or value == "":
        raise RowError(column, "missing")
    word = str(value).strip().lower()
    if word in _TIES:
        return 0.0
    for sign, name in ((1.0, names[0]), (-1.0, names[1])):
        suffix = name.lower().rsplit("_", 1)[-1]
        if word in (name.lower(), suffix, f"model_{suffix}"):
            return sign
    raise RowError(column, f"names neither '{names[0]}' nor '{names[1]}', found {shown(value, 40)}")
