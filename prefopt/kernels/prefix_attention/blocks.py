"""Which blocks of a row see which, and the rule inside a block: worked out on the host, no [T, T] mask."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from prefopt.kernels.prefix_attention.layout import path_starts
from prefopt.types import Segments

HostInts = npt.NDArray[np.int64]
FAR = 2**30
"""A distance no row has, in place of an absent window; twice it still fits an int32."""


@dataclass(frozen=True, slots=True)
class TokenRule:
    """Decide by four numbers a token whether query i sees key j, in any forest and any window.

    Tokens are numbered tree by tree, a token directly followed by all that descends from it. So j is i or
    an ancestor of i where ``order[j] <= order[i] <= last[j]``, and i is in reach where ``place[i] <= reach[j]``.

    A prompt of two tokens with answers of one and two, ``P P C R R``, under a window of 3:
    order 0 1 2 3 4, last 4 4 2 4 4, place 0 1 2 2 3, reach 2 3 4 4 5. Token 4 does not see token 2, since 4 > 2 in
    ``last``, nor token 0, since its place 3 is beyond the reach 2; it sees 1, 3 and itself.
    """

    order: HostInts  # [T]
    last: HostInts  # [T], the largest number among the token's descendants
    place: HostInts  # [T], tokens of its path before it
    reach: HostInts  # [T], the last place that sees it through the window

    def visible(self) -> npt.NDArray[np.bool_]:
        """Return bool [T, T], for tests and small rows."""
        at = self.order[:, None]
        return (self.order <= at) & (at <= self.last) & (self.place[:, None] <= self.reach)


def token_rule(segments: Segments, window: int | None, size: int) -> TokenRule:
    """Work out the rule of a row that is filled up to ``size`` tokens; each of the rest sees itself alone."""
    order, place = np.arange(size), np.zeros(size, dtype=np.int64)
    last = order.copy()
    before = path_starts(segments)
    first, end = _walk(segments)
    for index, (start, length) in enumerate(zip(segments.starts, segments.lengths, strict=True)):
        steps = np.arange(length)
        order[start : start + length] = first[index] + steps
        last[start : start + length] = end[index] - 1
        place[start : start + length] = before[index] + steps
    return TokenRule(order, last, place, place + (FAR if window is None else window - 1))


def _walk(segments: Segments) -> tuple[list[int], list[int]]:
    """Number the tokens depth first; return each segment's first number and the end of its descendants."""
    below = list(segments.lengths)
    for index in range(len(segments) - 1, -1, -1):
        if segments.parents[index] >= 0:
            below[segments.parents[index]] += below[index]
    # children come after their parents, so each finds its place already kept
    first, free, roots = [0] * len(segments), [0] * len(segments), 0
    for index, parent in enumerate(segments.parents):
        if parent < 0:
            first[index] = roots
            roots += below[index]
        else:
            first[index] = free[parent]
            free[parent] += below[index]
        free[index] = first[index] + segments.lengths[index]
    return first, [low + count for low, count in zip(first, below, strict=True)]


def block_kinds(segments: Segments, window: int | None, size: int, block: int) -> npt.NDArray[np.int8]:
    """Return int8 [size / block, size / block]: 0 no query sees a key, 1 some do, 2 every query sees every key.

    Args:
        segments: the forest.
        window: as in ``Rule``.
        size: tokens of the row when it is filled up, a multiple of ``block``.
        block: tokens of a block.
    """
    pieces = _pieces(segments, size, block)
    count = size // block
    seen = np.zeros((len(pieces.row), count), dtype=np.int64)  # keys that any query of the piece sees
    common = np.zeros_like(seen)  # keys that all of them see
    node = pieces.segment.copy()
    while (node >= 0).any():
        low_first, high_first = _span(segments, window, pieces, node, pieces.first)
        low_last, high_last = _span(segments, window, pieces, node, pieces.last)
        # from one query to the next both ends of the span move on by one token at most
        seen += _overlap(low_first, high_last, count, block)
        common += _overlap(low_last, high_first, count, block)
        node = np.where(node >= 0, np.array(segments.parents)[node], -1)
    is_filler = pieces.segment < 0
    seen[is_filler, pieces.row[is_filler]] = 1
    kinds = np.zeros((count, count), dtype=np.int8)
    np.maximum.at(kinds, pieces.row, (seen > 0).astype(np.int8))
    partly = np.zeros_like(kinds)
    np.maximum.at(partly, pieces.row, (common < block).astype(np.int8))
    return np.where(partly == 0, np.int8(2), kinds)


@dataclass(frozen=True, slots=True)
class _Pieces:
    """The row cut at the ends of blocks and of segments."""

    row: HostInts  # the block that a piece lies in
    segment: HostInts  # -1 behind the last segment
    first: HostInts  # first and last token
    last: HostInts


def _pieces(segments: Segments, size: int, block: int) -> _Pieces:
    ends = np.cumsum((0, *segments.lengths))
    first = np.unique(np.concatenate([ends, np.arange(0, size, block)]))
    first = first[first < size]
    last = np.append(first[1:], size) - 1
    segment = np.searchsorted(ends, first, side="right") - 1
    return _Pieces(first // block, np.where(segment < len(segments), segment, -1), first, last)


def _span(
    segments: Segments, window: int | None, pieces: _Pieces, node: HostInts, token: HostInts
) -> tuple[HostInts, HostInts]:
    """Return the packed [low, high) of the keys in ``node`` that each piece's ``token`` sees; empty where -1."""
    starts, lengths = np.array(segments.starts), np.array(segments.lengths)
    before = np.array(path_starts(segments))
    place = before[pieces.segment] + token - starts[pieces.segment]
    length = np.where(node >= 0, lengths[node], 0)
    high = np.clip(place + 1 - before[node], 0, length)
    low = np.clip(place + 1 - (FAR if window is None else window) - before[node], 0, length)
    return starts[node] + low, starts[node] + high


def _overlap(low: HostInts, high: HostInts, count: int, block: int) -> HostInts:
    """Return how many tokens of each of ``count`` blocks lie in each [low, high)."""
    starts = np.arange(count) * block
    inside: HostInts = np.minimum(high[:, None], starts + block) - np.maximum(low[:, None], starts)
    return inside.clip(0)
