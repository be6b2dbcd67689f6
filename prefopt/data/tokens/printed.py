"""What a chat template prints of a row, and what it leaves out.

Templates leave out what they do not know: calls of tools, reasoning, names. Whether the content of turns is there, its
text shows. For everything else the row is printed once more with a mark behind each of its texts, since a name or a
short argument may stand in the text for other reasons; what has no mark there is not printed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from prefopt.data.rows.raw_rows import RowError
from prefopt.types import Comparison

SAID = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking", "refusal")
"""What an assistant's turn says besides its content; an answer without it is another answer."""

_NO_TEXT = ("role", "content", "weight")  # of a turn, read by other means
_FORM = ("type", "index")  # of calls and tools: templates choose by them and need not print them
_IDS = ("id", "tool_call_id")  # templates check their form, so they carry no mark
_OF_TOOLS = ("name", "description")
_LONG = 32
"""Characters from which on a text is not there by chance."""

_WORD = re.compile(r"\w+")


class Leaf(NamedTuple):
    """One value of a row besides the contents of its turns."""

    name: str  # what the row calls it
    place: tuple[int, int]  # number of the answer, 0 for the prompt, and of its turn
    mark: str  # "" where it carries none
    forms: tuple[str, ...]  # as which it may be printed

    def is_printed(self, text: str, marked: str | RowError) -> bool:
        """Whether it is in the text of its row, or its mark in the text with marks."""
        has_form = any(form in text for form in self.forms)
        if not self.mark or isinstance(marked, RowError):
            return has_form
        return self.mark in marked.lower() or (has_form and len(self.forms[0]) >= _LONG)


class Marked(NamedTuple):
    """A row with a mark behind each of its texts, contents of turns apart."""

    prompt: list[Any]
    answers: list[list[Any]]
    tools: Any
    leaves: list[Leaf]


def has_more(row: Comparison) -> bool:
    """Whether a row of messages holds anything besides roles, contents and weights."""
    if row.tools is not None:
        return True
    turns = [row.prompt, *row.answers]
    return any(key not in _NO_TEXT for part in turns for turn in part for key in turn)


def marked(row: Comparison) -> Marked:
    """Return a row of messages with marks."""
    leaves: list[Leaf] = []
    prompt, *answers = [
        [_mark_turn(turn, (number, at), leaves) for at, turn in enumerate(turns)]
        for number, turns in enumerate([row.prompt, *row.answers])
    ]
    tools = None if row.tools is None else _mark(list(row.tools), ("tools",), (0, -1), leaves)
    return Marked(prompt, answers, tools, leaves)


def _mark_turn(turn: Any, place: tuple[int, int], leaves: list[Leaf]) -> dict[str, Any]:
    return {
        key: value if key in _NO_TEXT else _mark(value, (key,), place, leaves) for key, value in turn.items()
    }


def _mark(value: Any, path: tuple[str, ...], place: tuple[int, int], leaves: list[Leaf]) -> Any:
    if isinstance(value, Mapping):
        return {key: _mark(each, (*path, str(key)), place, leaves) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_mark(each, path, place, leaves) for each in value]
    forms = _forms(value)
    if not forms or path[-1] in _FORM or (path[0] == "tools" and path[-1] not in _OF_TOOLS):
        return value
    is_id = path[-1] in _IDS and "arguments" not in path
    name = ".".join(dict.fromkeys((path[0], path[-1]))) if is_id else path[0]
    mark = f"qz{len(leaves)}zq" if isinstance(value, str) and not is_id else ""
    leaves.append(Leaf(name, place, mark, forms))
    return f"{value}{mark}" if mark else value


def _forms(value: Any) -> tuple[str, ...]:
    """Return the texts as which a value may be printed, none for one that says nothing."""
    if isinstance(value, str):
        said = value.strip()
        return (said, json.dumps(said)[1:-1], json.dumps(said, ensure_ascii=False)[1:-1]) if said else ()
    if isinstance(value, bool | int | float):
        return (json.dumps(value), str(value))
    return ()


def all_there(turns: Sequence[Any], text: str) -> bool:
    """Whether it is clear at a glance that the contents of the turns are all printed, each as it is."""
    contents = [turn["content"] for turn in turns]
    if len(contents) == 1:
        return bool(contents[0]) and contents[0] in text
    every = "\0".join(contents)  # no text holds a NUL
    return all(content and content in text and every.count(content) == 1 for content in contents)


def left_out(turns: Sequence[Any], text: str) -> bool:
    """Whether the content of a turn is not in the text, at a place that no longer one holds."""
    for said in sorted((str(turn["content"]).strip() for turn in turns), key=len, reverse=True):
        if said not in text:
            return True
        if said:
            text = text.replace(said, "\0", 1)  # which no text holds
    return False


def trimmed(turns: Sequence[Any], text: str) -> bool:
    """Whether blanks around the content of a turn are not printed."""
    contents = (str(turn["content"]) for turn in turns)
    return any((said[:1].isspace() or said[-1:].isspace()) and said not in text for said in contents)


class Unsaid(NamedTuple):
    """An answer whose assistant says more than the template prints."""

    answer: int  # its number, from 1
    what: str  # what is lacking
    is_all: bool  # a turn of it says nothing else

    @property
    def error(self) -> RowError:
        """The row as a bad one."""
        why = f"the chat template does not print its {self.what}"
        return RowError(f"answer {self.answer}", f"empty answer: {why}" if self.is_all else why)


def unsaid(row: Comparison, texts: Sequence[str], is_printed: Mapping[Leaf, bool]) -> Unsaid | None:
    """Find an answer that lacks something of what its assistant says, the emptiest first.

    Args:
        row: messages.
        texts: its answers as the template prints them.
        is_printed: which of its values are printed.
    """
    found = []
    for number, (answer, text) in enumerate(zip(row.answers, texts, strict=True), 1):
        for at, turn in enumerate(answer):
            if isinstance(turn, Mapping) and turn["role"] == "assistant":
                own = [leaf for leaf in is_printed if leaf.place == (number, at) and leaf.name in SAID]
                said = [(leaf.name, is_printed[leaf]) for leaf in own]
                content = str(turn["content"]).strip()
                if content:
                    said.append(("content", content in text or _shares_word(content, text)))
                lacks = [name for name, is_there in said if not is_there]
                found += [Unsaid(number, lacks[0], len(lacks) == len(said))] if lacks else []
    return max(found, key=lambda each: each.is_all, default=None)


def _shares_word(content: str, text: str) -> bool:
    words = set(_WORD.findall(content))
    return not words or not words.isdisjoint(_WORD.findall(text))
