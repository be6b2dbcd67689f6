"""Render rows with the chat template and tokenize them: each prompt once, answers by a short window.

The scored tokens of an answer are exactly those that the whole text ``prompt + answer`` has after
the prompt. Tokenizing that whole text for every answer would repeat the prompt's work, so only a
window is tokenized: from a boundary a little before the end of the prompt to the end of the answer.
Every row checks that its window begins with the prompt's own last tokens; a fixed sample of rows is
checked against the whole text, and if one differs, windows are given up for all rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2
import numpy as np

from prefopt.data.rows.raw import RowError, one_line, shown
from prefopt.data.tokens.control import ControlTokens
from prefopt.data.tokens.turns import Span, Turns, Weights, needs_spans, spans_of, token_weights
from prefopt.errors import DataError, ModelError
from prefopt.types import Comparison, IntArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_WINDOW = 32
"""Characters of the prompt that a window holds at least when no control token is near its end."""

_CONTROL_REACH = 160
"""Characters before the prompt's end in which a control token is looked for as the window's start."""

_SAMPLE_FIRST, _SAMPLE_EVERY = 64, 101
_TEMPLATE_HINT = "Set model.chat_template to a template file or string"


class Rendered(NamedTuple):
    """One row as text: the prompt, and what follows it for every answer."""

    prompt: str
    answers: tuple[str, ...]
    is_chat: bool
    has_control: bool  # a control token is spelled out inside the row's own text
    is_left_out: bool  # the template did not print some of the row's text
    spans: tuple[tuple[Span, ...], ...] | None = None  # what counts of each answer; None: all of it


class Tokens(NamedTuple):
    """One row as token ids."""

    prompt: IntArray
    answers: tuple[IntArray, ...]
    is_cut_back: bool  # the prompt's last tokens changed where an answer follows
    weights: tuple[Weights, ...] | None = None  # of each answer's tokens; None: all 1


class WindowError(Exception):
    """A window gave other tokens than the whole text; everything is tokenized whole instead."""


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


class Tokenizer:
    """Tokenize rendered rows exactly as their whole texts would be.

    Args:
        tokenizer: of the model that is trained; its own state is neither used nor changed.
        windowed: tokenize only a window of the prompt before every answer; False tokenizes whole texts.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, windowed: bool = True) -> None:
        self.tokenizer = tokenizer
        self.windowed = windowed
        self.control = ControlTokens(tokenizer)
        self._backend = _copy_of_backend(tokenizer)
        self._tails: dict[str, list[int]] = {}
        self._opening = self._find_opening()
        self._seen = 0

    def fingerprint(self) -> str:
        """Return a digest of everything that decides the ids of a text."""
        if self._backend is not None:
            content = self._backend.to_str()
        else:
            files = {**self.tokenizer.get_vocab(), **self.tokenizer.init_kwargs}
            content = json.dumps(files, sort_keys=True, default=str)
        parts = [type(self.tokenizer).__name__, content, str(self.tokenizer.eos_token), repr(self._opening)]
        return hashlib.blake2b("\0".join(parts).encode(), digest_size=20).hexdigest()

    def tokenize(self, rows: Sequence[Rendered]) -> list[Tokens | RowError]:
        """Tokenize ``rows``; one without a token to score becomes the reason why.

        Raises:
            WindowError: a row of the sample has other tokens as a whole text; build the tokenizer
                anew with ``windowed=False`` and start over.
        """
        result = self._by_window(rows) if self.windowed else self._whole(rows)
        if self.windowed:
            at = [n for n in range(len(rows)) if self._is_sample(self._seen + n)]
            for n, expected in zip(at, self._whole([rows[n] for n in at]), strict=True):
                if not _same(result[n], expected):
                    raise WindowError
        self._seen += len(rows)
        return result

    @staticmethod
    def _is_sample(index: int) -> bool:
        return index < _SAMPLE_FIRST or index % _SAMPLE_EVERY == 0

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        if self._backend is not None:
            return [entry.ids for entry in self._backend.encode_batch_fast(texts, add_special_tokens=False)]
        ids: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return ids

    def _by_window(self, rows: Sequence[Rendered]) -> list[Tokens | RowError]:
        prompts = self._encode([row.prompt for row in rows])
        tails = [row.prompt[self._window_start(row.prompt) :] for row in rows]
        self._learn_tails(tails)
        windows = iter(
            self._encode(
                [tail + answer for row, tail in zip(rows, tails, strict=True) for answer in row.answers]
            )
        )
        result: list[Tokens | RowError] = []
        redo: list[int] = []
        for n, (row, ids, tail) in enumerate(zip(rows, prompts, tails, strict=True)):
            own = self._tails[tail]
            size = len(own)
            mine = [next(windows) for _ in row.answers]
            if ids[len(ids) - size :] == own and all(w[:size] == own and len(w) > size for w in mine):
                result.append(self._tokens(row, ids, [window[size:] for window in mine], False))
            else:
                result.append(RowError("", "not tokenized"))
                redo.append(n)
        for n, tokens in zip(redo, self._whole([rows[n] for n in redo]), strict=True):
            result[n] = tokens
        return result

    def _whole(self, rows: Sequence[Rendered]) -> list[Tokens | RowError]:
        prompts = self._encode([row.prompt for row in rows])
        wholes = iter(self._encode([row.prompt + answer for row in rows for answer in row.answers]))
        result: list[Tokens | RowError] = []
        for row, prompt in zip(rows, prompts, strict=True):
            mine = [next(wholes) for _ in row.answers]
            common = min(_common_prefix(prompt, whole) for whole in mine)
            short = next((n for n, whole in enumerate(mine) if len(whole) <= common), None)
            if short is not None:
                result.append(RowError(f"answer {short + 1}", "has no token after the prompt"))
            else:
                answers = [whole[common:] for whole in mine]
                result.append(self._tokens(row, prompt[:common], answers, common < len(prompt)))
        return result

    def _tokens(
        self, row: Rendered, prompt: list[int], answers: Sequence[list[int]], is_cut_back: bool
    ) -> Tokens | RowError:
        if not row.is_chat and prompt[: len(self._opening)] != self._opening:
            prompt = [*self._opening, *prompt]
        if not prompt:
            return RowError("prompt", "has no token that all answers follow")
        ids = tuple(np.array(answer, dtype=np.int32) for answer in answers)
        weights = None
        if row.spans is not None:
            weights = tuple(self._weigh(row, index, ids[index]) for index in range(len(ids)))
        return Tokens(np.array(prompt, dtype=np.int32), ids, is_cut_back, weights)

    def _weigh(self, row: Rendered, index: int, ids: IntArray) -> Weights:
        """Return the weight of every token of one answer, by the place of its text."""
        if self._backend is None:
            name = type(self.tokenizer).__name__
            raise DataError(
                f"weights of turns: {name} does not say which text a token stands for. Use a fast tokenizer."
            )
        assert row.spans is not None
        encoded = self._backend.encode(row.prompt + row.answers[index], add_special_tokens=False)
        own = len(encoded.ids) - len(ids)
        if not np.array_equal(encoded.ids[own:], ids):
            raise WindowError
        return token_weights(row.spans[index], encoded.offsets[own:], len(row.prompt))

    def _window_start(self, prompt: str) -> int:
        """Return where tokens before and after do not depend on each other, near the prompt's end."""
        start = self.control.last_start(prompt, len(prompt) - _CONTROL_REACH)
        if start >= 0:
            return start
        start = prompt.rfind(" ", 1, max(len(prompt) - _WINDOW, 0))
        while start > 0 and not (prompt[start - 1].isalnum() and prompt[start + 1].isalnum()):
            start = prompt.rfind(" ", 1, start)
        return max(start, 0)

    def _learn_tails(self, tails: Sequence[str]) -> None:
        if len(self._tails) > 50_000:
            self._tails.clear()
        new = sorted(set(tails) - self._tails.keys())
        self._tails.update(zip(new, self._encode(new), strict=True))

    def _find_opening(self) -> list[int]:
        """Return the ids that the tokenizer puts before a plain text, such as BOS."""
        bare = self._encode(["a"])[0]
        # The tokenizer itself is asked only where there is no copy: a call resets its truncation.
        whole = list(self._backend.encode("a").ids if self._backend else self.tokenizer("a")["input_ids"])
        for start in range(len(whole) - len(bare) + 1):
            if whole[start : start + len(bare)] == bare:
                return list(whole[:start])
        return []


def _read_template(chat_template: str | None) -> str | None:
    if chat_template is None or "{{" in chat_template or "{%" in chat_template:
        return chat_template
    try:
        return Path(chat_template).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ModelError(
            f"model.chat_template: {shown(chat_template)} is neither a template nor a readable file "
            f"({one_line(error)}). Give a Jinja template or the path of one."
        ) from None


def _copy_of_backend(tokenizer: PreTrainedTokenizerBase) -> Any:
    """Return a private copy of a fast tokenizer without truncation or padding, or None for a slow one."""
    backend = getattr(tokenizer, "backend_tokenizer", None) if tokenizer.is_fast else None
    if backend is None:
        return None
    copy = type(backend).from_str(backend.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


def _not_a_prefix(prompt: str, whole: str) -> RowError:
    at = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(whole))
    alone, inside = shown(prompt[at : at + 24], 40), shown(whole[at : at + 24], 40)
    why = f"the chat template prints {alone} where the same prompt before an answer has {inside}"
    return RowError("prompt", why)


def _common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    size = min(len(left), len(right))
    if left[:size] == right[:size]:
        return size
    differ = np.asarray(left[:size]) != np.asarray(right[:size])
    return int(differ.argmax())


def _same(left: Tokens | RowError, right: Tokens | RowError) -> bool:
    if isinstance(left, RowError) or isinstance(right, RowError):
        return type(left) is type(right)
    mine, other = [left.prompt, *left.answers], [right.prompt, *right.answers]
    return all(np.array_equal(a, b) for a, b in zip(mine, other, strict=True))
