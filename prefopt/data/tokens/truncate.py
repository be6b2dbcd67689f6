"""Fit a prompt and its answers into a number of tokens; pure arithmetic on lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

Mode = Literal["keep_start", "keep_end", "drop", "error"]


class Cut(NamedTuple):
    """What is taken away: tokens off the prompt's head, and the most tokens an answer keeps."""

    prompt_head: int
    answer_room: int


def fit(prompt: int, answers: Sequence[int], max_tokens: int, mode: Mode) -> Cut | None:
    """Say how one prompt and its answers fit into ``max_tokens``, or None if they cannot.

    The prompt stays the same for all answers, and neither it nor an answer is ever emptied.
    ``keep_start`` cuts the tails of answers. ``keep_end`` cuts the prompt's head first, down to its
    last token, and then the tails of answers. ``drop`` and ``error`` cut nothing.

    Args:
        prompt: tokens of the prompt, at least 1.
        answers: tokens of every answer, each at least 1.
        max_tokens: room for the prompt with its longest answer, at least 2.
        mode: what to give up.
    """
    longest = max(answers)
    excess = prompt + longest - max_tokens
    if excess <= 0:
        return Cut(0, longest)
    if mode == "keep_start" and prompt < max_tokens:
        return Cut(0, max_tokens - prompt)
    if mode == "keep_end":
        head = min(excess, prompt - 1)
        return Cut(head, max_tokens - (prompt - head))
    return None
