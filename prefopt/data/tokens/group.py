"""From a row's tokens to its group: cut to size, without pairs that teach nothing."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan
from typing import NamedTuple

import numpy as np

from prefopt.data.rows.loss_needs import Needs
from prefopt.data.rows.report import DataReport
from prefopt.data.rows.split_prompts import Part, roles_of
from prefopt.data.tokens.tokenize import Tokens
from prefopt.data.tokens.truncate import Mode, fit
from prefopt.data.tokens.turns import Weights
from prefopt.errors import DataError
from prefopt.structures.rows import Handling, InvertedHandling, renumber
from prefopt.types import Comparison, IntArray, Preference, TokenizedGroup


class Settings(NamedTuple):
    """How rows become groups."""

    max_tokens: int | None
    truncate: Mode
    on_identical: Handling
    on_tie: Handling
    on_inverted: InvertedHandling
    on_markers: Handling
    on_unprinted: Handling
    needs: Needs


class _Replies(NamedTuple):
    """All texts of a row as tokens: the answers, then the extras."""

    prompts: list[IntArray]
    responses: list[IntArray]
    prompt_of: list[int]
    weights: list[Weights | None]  # of the responses' tokens; None: all 1

    def has_nothing_scored(self, index: int) -> bool:
        """Whether no token of a response counts."""
        weights = self.weights[index]
        return weights is not None and not weights.any()


class GroupMaker:
    """Make groups of tokenized rows, and count in ``report`` what was cut or left out."""

    def __init__(self, settings: Settings, report: DataReport) -> None:
        self.settings = settings
        self.report = report

    def make(self, row: Comparison, parts: Sequence[Part], tokens: Sequence[Tokens]) -> TokenizedGroup | None:
        """Return the group of a row, or None where nothing is left of it.

        Args:
            row: as it was chosen.
            parts: of it, one for each prompt.
            tokens: of each part.

        Raises:
            DataError: the row is too long or its answers are identical, and that is not allowed.
        """
        replies = self._fit(row, parts, tokens)
        if replies is None:
            return None
        use, num_answers = self.settings.needs.use, len(row.answers)
        preferences = row.preferences
        wanted = list(range(num_answers))
        if use.drops_identical and preferences:
            preferences = tuple(p for p in preferences if not self._is_identical(row, replies, p))
            wanted = sorted({index for pair in preferences for index in pair[:2]})
            if not wanted:
                return None
            preferences = renumber(preferences, wanted)
        labels = None if row.labels is None else tuple(row.labels[index] for index in wanted)
        if use.labels and labels is None:
            best = {pair.chosen for pair in preferences}
            labels, preferences = tuple(index in best for index in range(len(wanted))), ()
        scores = None if row.scores is None else tuple(row.scores[index] for index in wanted)
        extras = len(row.extras)
        wanted += range(num_answers, num_answers + extras)
        if any(replies.has_nothing_scored(index) for index in wanted):
            self.report.unused.add(row.origin)
            return None
        used = sorted({replies.prompt_of[index] for index in wanted})
        roles = roles_of(row)
        return TokenizedGroup(
            prompts=tuple(replies.prompts[index] for index in used),
            responses=tuple(replies.responses[index] for index in wanted),
            prompt_of=tuple(used.index(replies.prompt_of[index]) for index in wanted),
            preferences=preferences,
            row_id=row.row_id,
            origin=row.origin,
            roles=None if roles is None else tuple(roles[index] for index in wanted),
            scores=None if scores is None else scores + (nan,) * extras,
            labels=None if labels is None else labels + (False,) * extras,
            token_weights=_weights([(replies.responses[i], replies.weights[i]) for i in wanted]),
            prompt_embedding=row.prompt_embedding,
        )

    def _fit(self, row: Comparison, parts: Sequence[Part], tokens: Sequence[Tokens]) -> _Replies | None:
        """Cut every prompt with its replies to size; None where one does not fit."""
        num_replies = len(row.answers) + len(row.extras)
        replies = _Replies([], [np.empty(0, np.int32)] * num_replies, [0] * num_replies, [None] * num_replies)
        is_cut = False
        for index, (part, found) in enumerate(zip(parts, tokens, strict=True)):
            lengths = [len(answer) for answer in found.answers]
            cut = self._cut(row, len(found.prompt), lengths)
            if cut is None:
                self.report.too_long.add(row.origin)
                return None
            head, room = cut
            is_cut |= head > 0 or room < max(lengths)
            replies.prompts.append(found.prompt[head:])
            for position, at in enumerate(part.at):
                replies.responses[at] = found.answers[position][:room]
                replies.prompt_of[at] = index
                if found.weights is not None:
                    replies.weights[at] = found.weights[position][:room]
        if is_cut:
            self.report.truncated.add(row.origin)
        return replies

    def _cut(self, row: Comparison, prompt: int, answers: Sequence[int]) -> tuple[int, int] | None:
        limit = self.settings.max_tokens
        if limit is None or prompt + max(answers) <= limit:
            return 0, max(answers)
        if self.settings.truncate == "error":
            raise DataError(
                f"{row.origin}: prompt and longest answer have {prompt + max(answers)} tokens, more than "
                f"batch.max_tokens: {limit}. Raise it, or set rows.truncate to keep_start, keep_end or drop."
            )
        return fit(prompt, answers, limit, self.settings.truncate)

    def _is_identical(self, row: Comparison, replies: _Replies, pair: Preference) -> bool:
        """Count a pair of equal answers to equal prompts; True if it is to be left out."""
        chosen, rejected = pair.chosen, pair.rejected
        answers, prompts, of = replies.responses, replies.prompts, replies.prompt_of
        if not np.array_equal(answers[chosen], answers[rejected]) or not np.array_equal(
            prompts[of[chosen]], prompts[of[rejected]]
        ):
            return False
        if self.settings.on_identical == "error":
            raise DataError(
                f"{row.origin}: 'chosen' and 'rejected' are the same {len(answers[chosen])} tokens, so the "
                f"pair teaches nothing. Set rows.on_identical: drop to skip such rows."
            )
        self.report.identical.add(row.origin)
        return self.settings.on_identical == "drop"


def _weights(replies: Sequence[tuple[IntArray, Weights | None]]) -> tuple[Weights, ...] | None:
    """Return the weights of every response's tokens, or None where all of them are 1."""
    found = tuple(
        np.ones(len(response), np.float32) if weights is None else weights for response, weights in replies
    )
    return None if all((weights == 1.0).all() for weights in found) else found
