"""Answers to other prompts, from which a loss measures how far the policy is from the reference at large."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import nan

import numpy as np

from prefopt.errors import DataError
from prefopt.types import TokenizedGroup


def add_mismatched(
    groups: Sequence[TokenizedGroup], max_tokens: int | None, loss: str = "this loss"
) -> list[TokenizedGroup]:
    """Let the answers of the next row follow the prompt of each, with the role "kl".

    The next row is the next one with another prompt, the first after the last, so that which answers
    meet depends on the data alone, not on steps, packs or ranks. A row with K answers gets K of them, or
    as many as the next row has. They are cut to ``max_tokens`` with the prompt.

    Raises:
        DataError: all rows have one prompt.
    """
    return [
        _with(group, groups[other], max_tokens)
        for group, other in zip(groups, _next(groups, loss), strict=True)
    ]


def _next(groups: Sequence[TokenizedGroup], loss: str) -> list[int]:
    """Return, for every group, the next one whose prompt differs."""
    count = len(groups)
    following = [(index + 1) % count for index in range(count)]
    # twice round, from the back: the last groups find theirs among the first
    for index in [*range(count - 1, -1, -1)] * 2:
        if _is_same(groups[index], groups[following[index]]):
            following[index] = following[(index + 1) % count]
    if count and _is_same(groups[0], groups[following[0]]):
        raise DataError(
            f"{groups[0].origin}: {loss} needs answers to other prompts for its baseline, but all {count} rows have "
            f"one prompt. Give rows with different prompts."
        )
    return following


def _is_same(left: TokenizedGroup, right: TokenizedGroup) -> bool:
    return np.array_equal(left.prompts[0], right.prompts[0])


def _with(group: TokenizedGroup, other: TokenizedGroup, max_tokens: int | None) -> TokenizedGroup:
    count = len(group.responses)
    room = None if max_tokens is None else max_tokens - len(group.prompts[group.prompt_of[0]])
    added = tuple(response[:room] for response in other.responses[:count])
    weights = None
    if group.token_weights is not None:
        # drift is measured over whole answers
        weights = (*group.token_weights, *(np.ones(len(response), np.float32) for response in added))
    roles = group.roles or ("answer",) * count
    return replace(
        group,
        responses=(*group.responses, *added),
        prompt_of=(*group.prompt_of, *(group.prompt_of[0] for _ in added)),
        roles=(*roles, *("kl" for _ in added)),
        scores=None if group.scores is None else (*group.scores, *(nan for _ in added)),
        labels=None if group.labels is None else (*group.labels, *(False for _ in added)),
        token_weights=weights,
    )
