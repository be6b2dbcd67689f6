"""Tokenize rendered rows: each prompt once, answers by a short window.

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
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from prefopt.data.rows.raw_rows import RowError
from prefopt.data.tokens.control import ControlTokens
from prefopt.data.tokens.render import Rendered
from prefopt.data.tokens.turns import Weights, token_weights
from prefopt.errors import DataError
from prefopt.types import IntArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_WINDOW = 32
"""Characters of the prompt that a window holds at least when no control token is near its end."""

_CONTROL_REACH = 160
"""Characters before the prompt's end in which a control token is looked for as the window's start."""

_SAMPLE_FIRST, _SAMPLE_EVERY = 64, 101


class Tokens(NamedTuple):
    """One row as token ids."""

    prompt: IntArray
    answers: tuple[IntArray, ...]
    is_cut_back: bool  # the prompt's last tokens changed where an answer follows
    weights: tuple[Weights, ...] | None = None  # of each answer's tokens; None: all 1


class WindowError(Exception):
    """A window gave other tokens than the whole text; everything is tokenized whole instead."""


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


def _copy_of_backend(tokenizer: PreTrainedTokenizerBase) -> Any:
    """Return a private copy of a fast tokenizer without truncation or padding, or None for a slow one."""
    backend = getattr(tokenizer, "backend_tokenizer", None) if tokenizer.is_fast else None
    if backend is None:
        return None
    copy = type(backend).from_str(backend.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


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
