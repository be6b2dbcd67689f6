"""Turn one row of a known layout into a ``Comparison``: one small function per shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from prefopt.data.rows.cells import Row, Turns
from prefopt.data.rows.layouts import RANK_KEYS, SCORE_KEYS, TEXT_KEYS, RowLayout
from prefopt.data.rows.needs import PAIRS, STRENGTHS, Needs
from prefopt.data.rows.question import which_is_better
from prefopt.data.rows.raw import RowError, shown
from prefopt.data.rows.values import (
    MISSING,
    is_messages,
    is_transcript,
    label,
    messages,
    number,
    opened,
    sequence,
    text,
    transcript,
)
from prefopt.errors import DataError
from prefopt.types import Comparison, Extra, Preference

Reply = str | Turns

_TIES = ("tie", "both", "equal", "none", "draw", "tie (bothbad)", "both_bad")


def to_comparison(
    layout: RowLayout, row: Mapping[str, Any], row_id: int, origin: str, needs: Needs = PAIRS
) -> Comparison:
    """Read one row.

    A pair gives one preference, its margin the ``margin`` column or else the gap of the scores.
    K ranked answers give K - 1 preferences, the best answer against each other one, with the gap of
    their scores as margin; ranks count as scores of the opposite sign. The first of equally good
    answers counts as the best. A labelled answer gives none. Gold answers, rationales and embeddings
    are read only if ``needs`` asks for them.

    Raises:
        RowError: the row cannot be used; says which column and why.
    """
    cells = Row(layout, row, needs, origin)
    found = _DECODERS[layout.shape](cells, row_id, origin)
    embedding = cells.embedding()
    return found if embedding is None else replace(found, prompt_embedding=embedding)


def _pair(row: Row, row_id: int, origin: str) -> Comparison:
    scores = row.number("chosen_score"), row.number("rejected_score")
    if (scores[0] is None) != (scores[1] is None):
        raise RowError(row.column("chosen_score" if scores[0] is None else "rejected_score"), "missing")
    given = None if scores[0] is None or scores[1] is None else (scores[0], scores[1])
    if given is None and row.needs.use.ranks:
        raise RowError(row.column("chosen_score"), "missing")
    margin = row.number("margin")
    if margin is None:
        margin = given[0] - given[1] if given else 0.0
    names = [row.column("chosen"), row.column("rejected")]
    cells = [row.cell("chosen"), row.cell("rejected")]
    if row.layout.has_own_prompts:
        read = _own_prompts(row, names, cells)
    else:
        read = _prompt_and_answers(row, names, cells)
    return _compared(row, row_id, origin, read, (Preference(0, 1, row.weight(), margin, _soft(row)),), given)


def _contrast(row: Row, row_id: int, origin: str) -> Comparison:
    name, cell = row.column("completion"), row.cell("completion")
    read = _own_prompts(row, [name, name], [cell, cell])
    margin = row.number("margin") or 0.0
    return _compared(row, row_id, origin, read, (Preference(0, 1, row.weight(), margin, _soft(row)),), None)


def _labelled(row: Row, row_id: int, origin: str) -> Comparison:
    desirable = label(row.cell("label"), row.column("label"))
    if "completion" in row.layout.columns:
        read = _prompt_and_answers(row, [row.column("completion")], [row.cell("completion")])
        prompt, answers = read.prompt, read.answers
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


def _ranked(row: Row, row_id: int, origin: str) -> Comparison:
    column = row.column("responses")
    items = sequence(row.cell("responses"))
    if not isinstance(items, list):
        raise RowError(column, "missing" if items is MISSING else f"must be a list, found {shown(items, 40)}")
    if len(items) < 2:
        raise RowError(column, f"needs at least two answers, found {len(items)}")
    scores = _scores(row, items, column)
    names = [f"{column}.{index}" for index in range(len(items))]
    read = _prompt_and_answers(row, names, [_inner_text(item) for item in items])
    best = max(range(len(scores)), key=lambda index: scores[index])
    weight = row.weight()
    preferences = tuple(
        Preference(best, index, weight, scores[best] - scores[index])
        for index in range(len(scores))
        if index != best
    )
    return _compared(row, row_id, origin, read, preferences, scores)


def _choice(row: Row, row_id: int, origin: str) -> Comparison:
    names = [row.column("first"), row.column("second")]
    read = _prompt_and_answers(row, names, [row.cell("first"), row.cell("second")])
    strength = _strength(row, names)
    chosen = 0 if strength >= 0 else 1
    margin = abs(strength) if row.column("better") in STRENGTHS else 0.0
    preferences = (Preference(chosen, 1 - chosen, row.weight(), margin),)
    return _compared(row, row_id, origin, read, preferences, (0.0, 0.0) if strength == 0 else None)


_DECODERS = {
    "pair": _pair,
    "contrast": _contrast,
    "labelled": _labelled,
    "ranked": _ranked,
    "choice": _choice,
}


class _Read(NamedTuple):
    """The texts of a row."""

    prompt: Reply
    answers: tuple[Reply, ...]
    gold: Reply | None = None
    own_prompts: tuple[Reply, ...] | None = None  # of the answers, where they differ


def _compared(
    row: Row,
    row_id: int,
    origin: str,
    read: _Read,
    preferences: tuple[Preference, ...],
    scores: tuple[float, ...] | None,
) -> Comparison:
    """Put a row with preferences together, and what else the loss reads of it."""
    extras = [] if read.gold is None else [Extra("gold", read.gold)]
    if row.has("rationale"):
        extras.append(_rationale(row, read, preferences[0]))
    return Comparison(
        prompt=read.prompt,
        answers=read.answers,
        preferences=preferences,
        row_id=row_id,
        origin=origin,
        scores=scores,
        tools=row.tools(),
        own_prompts=read.own_prompts,
        extras=tuple(extras),
    )


def _soft(row: Row) -> float | None:
    return row.probability("soft_label")


def _rationale(row: Row, read: _Read, pair: Preference) -> Extra:
    """Read why the chosen answer is better, and the question that this text answers."""
    name = row.column("rationale")
    reason = _alone(row, row.cell("rationale"), name)
    if row.has("rationale_prompt"):
        return Extra("rationale", reason, row.prompt("rationale_prompt"))
    if read.own_prompts is not None:
        raise RowError(name, "has no question: the answers reply to different prompts. Give rationale_prompt")
    asked = which_is_better(read.prompt, read.answers[pair.chosen], read.answers[pair.rejected])
    return Extra("rationale", reason, asked)


def _own_prompts(row: Row, names: Sequence[str], cells: Sequence[Any]) -> _Read:
    """Read two answers that each follow a prompt of their own, or else the row's."""
    answers = tuple(_alone(row, cell, name) for cell, name in zip(cells, names, strict=True))
    given = [name if row.has(name) else "prompt" for name in ("chosen_prompt", "rejected_prompt")]
    prompts = tuple(row.prompt(name) for name in given)
    gold = _alone(row, row.cell("gold"), row.column("gold")) if row.has("gold") else None
    if prompts[0] == prompts[1]:
        read = _Read(prompts[0], answers, gold)
    else:
        read = _Read(prompts[0], answers, gold, prompts)
    _check_prompts(row, read, given, names)
    return read


def _check_prompts(row: Row, read: _Read, prompts: Sequence[str], names: Sequence[str]) -> None:
    allowed = row.needs.prompts
    if read.own_prompts is not None and row.needs.use.one_prompt and not allowed:
        raise DataError(
            f"{row.origin}: '{row.column(prompts[0])}' and '{row.column(prompts[1])}' differ, but "
            f"{row.needs.loss} compares answers to one prompt. Use joint_prompt, or give one prompt."
        )
    if "contrast" in allowed and read.answers[0] != read.answers[1]:
        why = f"differs from '{names[0]}', but {row.needs.loss} compares one answer to two prompts"
        raise RowError(names[1], why)


def _alone(row: Row, cell: Any, name: str) -> Reply:
    """Read a reply that is not the end of a whole conversation."""
    return _answer(_turns(cell, name), name) if row.layout.is_chat else text(cell, name)


def _prompt_and_answers(row: Row, names: Sequence[str], cells: Sequence[Any]) -> _Read:
    """Read the prompt, its answers and a gold answer where the loss reads one."""
    if not row.has("gold"):
        return _split(row, names, cells)
    name, cell = row.column("gold"), row.cell("gold")
    if not _is_conversation(row, cell, name):
        return _split(row, names, cells)._replace(gold=_alone(row, cell, name))
    read = _split(row, [*names, name], [*cells, cell])
    return _Read(read.prompt, read.answers[:-1], read.answers[-1])


def _is_conversation(row: Row, cell: Any, name: str) -> bool:
    """Whether a cell holds the prompt as well as the reply."""
    if row.layout.form == "transcript":
        return is_transcript(cell)
    return row.layout.is_chat and _turns(cell, name)[0]["role"] != "assistant"


def _split(row: Row, names: Sequence[str], cells: Sequence[Any]) -> _Read:
    if not row.layout.is_chat:
        prompt = row.prompt()
        return _Read(prompt, tuple(text(cell, name) for cell, name in zip(cells, names, strict=True)))
    read = transcript if row.layout.form == "transcript" else _turns
    answers = [read(cell, name) for cell, name in zip(cells, names, strict=True)]
    opening = [answer[0]["role"] for answer in answers]
    turns: Any
    if all(role == "assistant" for role in opening):
        turns = row.prompt()
    elif "assistant" in opening:
        at = opening.index("assistant")
        raise RowError(
            names[at], "begins with an assistant turn, but the other answer is a whole conversation"
        )
    else:
        turns, answers = _split_conversations(answers, names)
        if turns and turns[0]["role"] != "system":
            turns = row.system() + turns
    return _Read(turns, tuple(_answer(turn, name) for turn, name in zip(answers, names, strict=True)))


def _turns(cell: Any, name: str) -> Turns:
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
            raise RowError(
                names[at], f"is the beginning of '{names[0 if at else 1]}', so its answer would be empty"
            )
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


def _scores(row: Row, items: Sequence[Any], column: str) -> tuple[float, ...]:
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


def _strength(row: Row, names: Sequence[str]) -> float:
    """Return how much the first answer is better: positive, negative, or zero for a tie."""
    column, value = row.column("better"), row.cell("better")
    if column in STRENGTHS:
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
