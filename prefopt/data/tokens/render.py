"""Render rows as text, with the chat template or with the end-of-text token behind every answer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from prefopt.data.rows.raw_rows import RowError, one_line
from prefopt.data.tokens.control import ControlTokens
from prefopt.data.tokens.printed import (
    Leaf,
    Marked,
    Unsaid,
    all_there,
    has_more,
    left_out,
    marked,
    trimmed,
    unsaid,
)
from prefopt.data.tokens.template import Ask, Printed, TemplateProcess
from prefopt.data.tokens.turns import Span, Turns, beginnings, needs_spans, spans_of
from prefopt.errors import DataError, ModelError
from prefopt.types import Comparison
from prefopt.words import spelled

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TEMPLATE_HINT = "Set model.chat_template to a template file or string"


class Rendered(NamedTuple):
    """One row as text: the prompt, and what follows it for every answer."""

    prompt: str
    answers: tuple[str, ...]
    is_chat: bool
    has_control: bool  # a control token is spelled out inside the row's own text
    is_left_out: bool  # the template did not print some of the row's text
    spans: tuple[tuple[Span, ...], ...] | None = None  # what counts of each answer; None: all of it
    is_trimmed: bool = False  # the template took blanks around a text away
    unprinted: tuple[str, ...] = ()  # what the row holds besides contents and the template does not print
    unsaid: Unsaid | None = None  # the same of what an answer says


@dataclass(slots=True)
class _Part:
    """A row of messages on its way through the template."""

    row: Comparison
    prompt: str
    wholes: list[str]
    marked: Marked | None = None
    begun: Iterator[str | RowError] | None = None
    is_printed: dict[Leaf, bool] = field(default_factory=dict)

    @property
    def answers(self) -> list[str]:
        """What follows the prompt."""
        return [whole[len(self.prompt) :] for whole in self.wholes]


class Renderer:
    """Turn comparisons into text, by the chat template or with the end-of-text token.

    Args:
        tokenizer: of the model that is trained.
        chat_template: a template, or a path to one; None takes the tokenizer's own.
        turns: "assistant" counts only what assistant turns say in an answer of several turns; "all" does so
            only where a turn says what it counts.

    Raises:
        ModelError: ``chat_template`` is a path to nothing.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, chat_template: str | None = None, turns: Turns = "all"
    ) -> None:
        self.tokenizer = tokenizer
        self.turns = turns
        self.template = _read_template(chat_template)
        self.control = ControlTokens(tokenizer)
        self._process = TemplateProcess(tokenizer, self.template)
        self.opens_answers: bool | None = (
            None  # whether the template prints what an answer follows; None: not seen
        )

    def close(self) -> None:
        """End the process that prints the template."""
        self._process.close()

    def fingerprint(self) -> str:
        """Return what rendering depends on, besides the row."""
        template = self.template or self.tokenizer.chat_template
        parts = [template, self.tokenizer.special_tokens_map, self.turns]
        return json.dumps(parts, sort_keys=True, default=str)

    def render(self, rows: Sequence[Comparison]) -> list[Rendered | RowError]:
        """Render every row; a row that cannot be rendered becomes the reason why.

        Raises:
            DataError: message rows meet a tokenizer without a template, or text rows one without an
                end-of-text token.
            ModelError: the template does not compile, or is beyond all measure for a row.
        """
        chats = [row for row in rows if not isinstance(row.prompt, str)]
        texts = iter(self._chat_texts(chats))
        return [self._plain(row) if isinstance(row.prompt, str) else next(texts) for row in rows]

    def _plain(self, row: Comparison) -> Rendered | RowError:
        end = self.tokenizer.eos_token
        if not end:
            raise DataError(
                f"{row.origin}: plain text needs an end-of-text token and the tokenizer has none. Set its "
                f"eos_token, or give messages."
            )
        assert isinstance(row.prompt, str)
        answers = [str(answer) for answer in row.answers]
        ended = tuple(answer if answer.endswith(str(end)) else f"{answer}{end}" for answer in answers)
        own = [row.prompt, *(answer.removesuffix(str(end)) for answer in answers)]
        return Rendered(row.prompt, ended, False, self.control.found_in(own), False)

    def _chat_texts(self, rows: Sequence[Comparison]) -> list[Rendered | RowError]:
        if rows and not (self.template or self.tokenizer.chat_template):
            raise DataError(
                f"{rows[0].origin}: the row holds messages and the tokenizer has no chat template. "
                f"{_TEMPLATE_HINT}."
            )
        if rows and self.opens_answers is None:
            self._see_opening(rows[0])
        parts = [_split(row, texts) for row, texts in zip(rows, self._print(rows), strict=True)]
        self._look_closer([part for part in parts if isinstance(part, _Part)])
        return [part if isinstance(part, RowError) else self._rendered(part) for part in parts]

    def _see_opening(self, row: Comparison) -> None:
        ((closed, opened),) = self._process.print(
            [Ask(row.origin, row.prompt, [((), False), ((), True)], row.tools)]
        )
        if isinstance(closed, str) and isinstance(opened, str):
            self.opens_answers = opened != closed

    def _print(self, rows: Sequence[Comparison]) -> list[Printed]:
        return self._process.print(
            [
                Ask(
                    row.origin,
                    row.prompt,
                    [((), True), *((answer, False) for answer in row.answers)],
                    row.tools,
                )
                for row in rows
            ]
        )

    def _look_closer(self, parts: Sequence[_Part]) -> None:
        """Print what only some rows need: their texts with marks, and the beginnings of their answers."""
        asks = []
        for part in parts:
            row = part.row
            if has_more(row):
                part.marked = marked(row)
                prompt, answers, tools, _ = part.marked
                ends = [((), True), *((answer, False) for answer in answers)]
                asks.append((part, Ask(row.origin, prompt, ends, tools)))
            if needs_spans(row, self.turns):
                ends = [end for answer in row.answers for end in beginnings(answer)]
                asks.append((part, Ask(row.origin, row.prompt, ends, row.tools)))
        for (part, ask), texts in zip(asks, self._process.print([ask for _, ask in asks]), strict=True):
            if part.marked is not None and ask.base is part.marked.prompt:
                own = [part.prompt, *part.answers]
                part.is_printed = {
                    leaf: leaf.is_printed(own[leaf.place[0]], texts[leaf.place[0]])
                    for leaf in part.marked.leaves
                }
            else:
                part.begun = iter(texts)

    def _rendered(self, part: _Part) -> Rendered | RowError:
        row, prompt, answers = part.row, part.prompt, part.answers
        said: list[tuple[Any, str]] = [(row.prompt, prompt), *zip(row.answers, answers, strict=True)]
        texts = [str(turn["content"]) for turns, _ in said for turn in turns]
        rendered = Rendered(prompt, tuple(answers), True, self.control.found_in(texts), False)
        if part.is_printed or not all(all_there(turns, text) for turns, text in said):
            lacks = unsaid(row, answers, part.is_printed)
            if lacks is not None and lacks.is_all:
                return lacks.error
            rendered = rendered._replace(
                is_left_out=any(left_out(turns, text) for turns, text in said),
                is_trimmed=any(trimmed(turns, text) for turns, text in said),
                unprinted=tuple(
                    dict.fromkeys(leaf.name for leaf, found in part.is_printed.items() if not found)
                ),
                unsaid=lacks,
            )
        if part.begun is None:
            return rendered
        spans = spans_of(row, prompt, part.wholes, part.begun)
        return spans if isinstance(spans, RowError) else rendered._replace(spans=spans)


def _split(row: Comparison, texts: Printed) -> _Part | RowError:
    """Cut every whole text behind the prompt's text, which must begin it."""
    sound = [text for text in texts if not isinstance(text, RowError)]
    if len(sound) < len(texts):
        return next(text for text in texts if isinstance(text, RowError))
    prompt, *wholes = sound
    for index, whole in enumerate(wholes):
        if not whole.startswith(prompt):
            return _not_a_prefix(prompt, whole)
        if len(whole) == len(prompt):
            return RowError(f"answer {index + 1}", "the chat template prints nothing for it")
    return _Part(row, prompt, wholes)


def _read_template(chat_template: str | None) -> str | None:
    if chat_template is None or "{{" in chat_template or "{%" in chat_template:
        return chat_template
    try:
        return Path(chat_template).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ModelError(
            f"model.chat_template: {spelled(chat_template, 60)} is neither a template nor a readable file "
            f"({one_line(error)}). Give a Jinja template or the path of one."
        ) from None


def _not_a_prefix(prompt: str, whole: str) -> RowError:
    at = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(whole))
    alone, inside = spelled(prompt[at : at + 24], 40), spelled(whole[at : at + 24], 40)
    why = f"the chat template prints {alone} where the same prompt before an answer has {inside}"
    return RowError("prompt", why)
