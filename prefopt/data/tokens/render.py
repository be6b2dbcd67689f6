"""Render rows as text, with the chat template or with the end-of-text token behind every answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2

from prefopt.data.rows.raw_rows import RowError, one_line
from prefopt.data.tokens.control import ControlTokens
from prefopt.data.tokens.turns import Span, Turns, needs_spans, spans_of
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
            ModelError: the template does not compile.
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
        plain = [row for row in rows if row.tools is None]
        prompts = self._apply([row.prompt for row in plain], True)
        wholes = self._apply([[*row.prompt, *answer] for row in plain for answer in row.answers], False)
        ready = iter(prompts), iter(wholes)
        result = []
        for row in rows:
            if row.tools is None:
                prompt, whole = next(ready[0]), [next(ready[1]) for _ in row.answers]
            else:
                prompt = self._apply([row.prompt], True, row.tools)[0]
                whole = self._apply([[*row.prompt, *answer] for answer in row.answers], False, row.tools)
            result.append(self._split(row, prompt, whole))
        return result

    def _apply(
        self, conversations: Sequence[Any], opens_answer: bool, tools: Any = None
    ) -> list[str | RowError]:
        if not conversations:
            return []
        try:
            return list(self._apply_template(list(conversations), tools, opens_answer))
        except jinja2.TemplateSyntaxError as error:
            what = f"model.chat_template: does not compile ({one_line(error)}, line {error.lineno})"
            raise ModelError(f"{what}. Repair the template.") from None
        except Exception as error:  # noqa: BLE001 - a template may raise anything; which row did is found below
            if len(conversations) == 1:
                return [RowError("", f"the chat template refuses it ({one_line(error)})")]
        parts = [self._apply([conversation], opens_answer, tools) for conversation in conversations]
        return [part[0] for part in parts]

    def _apply_template(self, conversations: list[Any], tools: Any, opens_answer: bool) -> list[str]:
        texts = self.tokenizer.apply_chat_template(
            conversations,
            tools=tools,
            chat_template=self.template,
            add_generation_prompt=opens_answer,
            tokenize=False,
        )
        assert isinstance(texts, list)
        return [str(text) for text in texts]

    def _split(
        self, row: Comparison, prompt: str | RowError, wholes: Sequence[str | RowError]
    ) -> Rendered | RowError:
        """Cut every whole text behind the prompt's text, which must begin it."""
        for text in (prompt, *wholes):
            if isinstance(text, RowError):
                return text
        assert isinstance(prompt, str)
        answers = []
        for index, whole in enumerate(wholes):
            assert isinstance(whole, str)
            if not whole.startswith(prompt):
                return _not_a_prefix(prompt, whole)
            if len(whole) == len(prompt):
                return RowError(f"answer {index + 1}", "the chat template prints nothing for it")
            answers.append(whole[len(prompt) :])
        said = [str(turn["content"]) for turn in row.prompt if isinstance(turn, dict)]
        replies = [
            [str(turn["content"]) for turn in answer if isinstance(turn, dict)] for answer in row.answers
        ]
        left_out = any(text.strip() not in prompt for text in said) or any(
            text.strip() not in answer
            for answer, reply in zip(answers, replies, strict=True)
            for text in reply
        )
        has_control = self.control.found_in([*said, *(text for reply in replies for text in reply)])
        rendered = Rendered(prompt, tuple(answers), True, has_control, left_out)
        if not needs_spans(row, self.turns):
            return rendered
        spans = spans_of(row, prompt, list(map(str, wholes)), partial(self._apply, tools=row.tools))
        return spans if isinstance(spans, RowError) else rendered._replace(spans=spans)


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
