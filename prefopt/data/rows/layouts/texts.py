"""The texts of a row: its prompts, its answers, and what else replies to something."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from prefopt.data.rows.convert import MISSING, text
from prefopt.data.rows.layouts.fields import Fields, Messages
from prefopt.data.rows.layouts.question import which_is_better
from prefopt.data.rows.messages import is_transcript, messages, transcript
from prefopt.data.rows.raw_rows import RowError
from prefopt.errors import DataError
from prefopt.types import Comparison, Extra, Preference

Reply = str | Messages


_SPEAKERS = ("human", "user", "assistant", "system")

MEDIA = ("image", "images", "video", "videos", "audio", "audios")
"""Columns whose values belong to a prompt and are no text."""


class Texts(NamedTuple):
    """The texts of a row."""

    prompt: Reply
    answers: tuple[Reply, ...]
    gold: Reply | None = None
    own_prompts: tuple[Reply, ...] | None = None  # of the answers, where they differ


def refuse_media(row: Fields) -> None:
    """Refuse a row with images and the like: without them its texts speak of what is not there."""
    for name in MEDIA:
        value = row.value.get(name)
        if value in (None, "", [], {}, False) or name in row.layout.columns.values():
            continue
        raise RowError(name, f"has a value, but only text is read. To read none: columns: {{{name}: false}}")


def compared(
    row: Fields, read: Texts, preferences: tuple[Preference, ...], scores: tuple[float, ...] | None
) -> Comparison:
    """Put a row with preferences together, and what else the loss reads of it."""
    extras = [] if read.gold is None else [Extra("gold", read.gold)]
    if row.has("rationale"):
        extras.append(_rationale(row, read, preferences[0]))
    return Comparison(
        prompt=read.prompt,
        answers=read.answers,
        preferences=preferences,
        row_id=row.row_id,
        origin=row.origin,
        scores=scores,
        tools=row.tools(),
        own_prompts=read.own_prompts,
        extras=tuple(extras),
    )


def _rationale(row: Fields, read: Texts, pair: Preference) -> Extra:
    """Read why the chosen answer is better, and the question that this text answers."""
    name = row.column("rationale")
    reason = _alone(row, row.cell("rationale"), name)
    if row.has("rationale_prompt"):
        return Extra("rationale", reason, row.prompt("rationale_prompt"))
    if read.own_prompts is not None:
        raise RowError(name, "has no question: the answers reply to different prompts. Give rationale_prompt")
    for name, turns in (("chosen", read.answers[pair.chosen]), ("rejected", read.answers[pair.rejected])):
        if not isinstance(turns, str) and any(turn.get("tool_calls") for turn in turns):
            raise RowError(
                row.column(name), "calls a tool, which no question can quote. Give rationale_prompt"
            )
    asked = which_is_better(read.prompt, read.answers[pair.chosen], read.answers[pair.rejected])
    return Extra("rationale", reason, asked)


def own_prompts_and_answers(row: Fields, names: Sequence[str], cells: Sequence[Any]) -> Texts:
    """Read two answers that each follow a prompt of their own, or else the row's."""
    answers = tuple(_alone(row, cell, name) for cell, name in zip(cells, names, strict=True))
    given = [name if row.has(name) else "prompt" for name in ("chosen_prompt", "rejected_prompt")]
    prompts = tuple(row.prompt(name) for name in given)
    gold = _alone(row, row.cell("gold"), row.column("gold")) if row.has("gold") else None
    if prompts[0] == prompts[1]:
        read = Texts(prompts[0], answers, gold)
    else:
        read = Texts(prompts[0], answers, gold, prompts)
    _check_prompts(row, read, given, names)
    return read


def _check_prompts(row: Fields, read: Texts, prompts: Sequence[str], names: Sequence[str]) -> None:
    allowed = row.needs.prompts
    if read.own_prompts is not None and row.needs.use.one_prompt and not allowed:
        raise DataError(
            f"{row.origin}: '{row.column(prompts[0])}' and '{row.column(prompts[1])}' differ, but "
            f"{row.needs.loss} compares answers to one prompt. Use joint_prompt, or give one prompt."
        )
    if "contrast" in allowed and read.answers[0] != read.answers[1]:
        why = f"differs from '{names[0]}', but {row.needs.loss} compares one answer to two prompts"
        raise RowError(names[1], why)


def _alone(row: Fields, cell: Any, name: str) -> Reply:
    """Read a reply that is not the end of a whole conversation."""
    if not row.layout.is_chat or cell is MISSING or isinstance(cell, str):
        said = text(cell, name)
        return [{"role": "assistant", "content": said}] if row.layout.is_chat else said
    return reply(messages(cell, name), name)


def prompt_and_answers(row: Fields, names: Sequence[str], cells: Sequence[Any]) -> Texts:
    """Read the prompt, its answers and a gold answer where the loss reads one."""
    if not row.has("gold"):
        return _split(row, names, cells)
    name, cell = row.column("gold"), row.cell("gold")
    if not _is_conversation(row, cell, name):
        return _split(row, names, cells)._replace(gold=_alone(row, cell, name))
    read = _split(row, [*names, name], [*cells, cell])
    return Texts(read.prompt, read.answers[:-1], read.answers[-1])


def _is_conversation(row: Fields, cell: Any, name: str) -> bool:
    """Whether a cell holds the prompt as well as the reply."""
    if isinstance(cell, str):
        return row.layout.form == "transcript" and is_transcript(cell)
    return row.layout.is_chat and messages(cell, name)[0]["role"] != "assistant"


def _split(row: Fields, names: Sequence[str], cells: Sequence[Any]) -> Texts:
    if not row.layout.is_chat:
        prompt = str(row.prompt())
        replies = tuple(text(cell, name) for cell, name in zip(cells, names, strict=True))
        if all(said.startswith(prompt) for said in replies):
            row.findings.add("repeated_prompt")
        return Texts(prompt, replies)
    answers = [turns_of(row, cell, name) for cell, name in zip(cells, names, strict=True)]
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
        turns = row.opened_by_own(turns, is_whole=True)
        compare_prompt(row, turns)
    return Texts(turns, tuple(reply(turn, name) for turn, name in zip(answers, names, strict=True)))


def turns_of(row: Fields, cell: Any, name: str) -> Messages:
    """Read a reply or a whole conversation as messages."""
    if cell is not MISSING and not isinstance(cell, str):
        return messages(cell, name)
    said = text(cell, name)
    if row.layout.form != "transcript":
        return [{"role": "assistant", "content": said}]
    is_whole = is_transcript(said) or said.lstrip().startswith("Assistant:") or not row.has("prompt")
    return transcript(said if is_whole else f"Assistant:{said}", name)


def compare_prompt(row: Fields, turns: Messages) -> None:
    """Count a prompt that says more than the conversations, beside which it is not read.

    Args:
        row: with the prompt.
        turns: of the conversations.
    """
    prompt = row.cell("prompt")
    if prompt is MISSING:
        return
    contents = [" ".join(turn["content"].split()) for turn in turns]
    said = [prompt, row.input_of()] if isinstance(prompt, str) else _contents(row, prompt, turns)
    if said is None or any(_says_more(text, contents) for text in said):
        row.findings.add("other_prompt")


def _contents(row: Fields, prompt: Any, turns: Messages) -> list[str] | None:
    """Return what the turns of a prompt say that are not among others; None where more than contents differ."""
    try:
        other = [turn for turn in messages(prompt, row.column("prompt")) if turn not in turns]
    except RowError:
        return None
    has_more = any(turn.keys() - {"role", "content"} for turn in other)
    return None if has_more else [turn["content"] for turn in other]


def _says_more(said: str, contents: Sequence[str]) -> bool:
    """Whether a text holds words that are neither in ``contents`` nor name who speaks."""
    rest = " ".join(said.split())
    if any(rest in content for content in contents):
        return False
    for content in sorted(filter(None, contents), key=len, reverse=True):
        rest = rest.replace(content, " ")
    return any(word.lower() not in _SPEAKERS for word in re.findall(r"\w+", rest))


def _split_conversations(
    conversations: list[Messages], names: Sequence[str]
) -> tuple[Messages, list[Messages]]:
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


def reply(turns: Messages, column: str) -> Messages:
    """Return the turns of an answer, which begin and end with one of the assistant's."""
    if not turns or turns[-1]["role"] != "assistant":
        role = turns[-1]["role"] if turns else "user"
        raise RowError(column, f"ends with a {role} turn, not with an answer")
    if turns[0]["role"] != "assistant":
        raise RowError(column, f"begins with a {turns[0]['role']} turn, not with an answer")
    if _is_silent(turns[-1]):
        raise RowError(column, "empty answer")
    for index, turn in enumerate(turns):
        if turn["role"] == "assistant" and _is_silent(turn) and turn.get("weight") != 0:
            raise RowError(f"{column}.{index}", "empty turn of an answer")
    return turns


def _is_silent(turn: dict[str, Any]) -> bool:
    return not turn["content"].strip() and not turn.get("tool_calls")
