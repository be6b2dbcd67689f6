"""Which token sees which: masks and calls worked out on the host from the segments of a packed row."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from prefopt.ragged import on_device
from prefopt.types import Segments


@dataclass(frozen=True, slots=True)
class Call:
    """Describe one attention call: a run of queries and the runs of keys they may see.

    Queries and keys are given in packed order. A call with ``groups`` spans whole trees, so its mask
    is that of a small forest; any other has one path of keys ending in the queries themselves.
    """

    start: int
    stop: int
    spans: tuple[tuple[int, int], ...]  # packed [start, stop) of the keys
    groups: Segments | None = None  # relative to ``start``

    @property
    def num_queries(self) -> int:
        return self.stop - self.start

    @property
    def num_keys(self) -> int:
        return sum(stop - start for start, stop in self.spans)

    def is_causal(self, window: int | None) -> bool:
        """Tell whether the mask is the plain lower triangle."""
        is_square = self.groups is None and self.num_keys == self.num_queries
        return is_square and (window is None or window >= self.num_keys)

    def visible(
        self, window: int | None, device: torch.device, low: int = 0, high: int | None = None
    ) -> Tensor:
        """Return bool [high - low, num_keys]: what the queries from ``low`` to ``high`` may see."""
        high = self.num_queries if high is None else high
        if self.groups is not None:
            return dense_mask(self.groups, window, device)[low:high]
        offset = self.num_keys - self.num_queries
        at = torch.arange(low + offset, high + offset, device=device)[:, None]
        return _in_reach(at - torch.arange(self.num_keys, device=device), window)


def _in_reach(distance: Tensor, window: int | None) -> Tensor:
    seen = distance >= 0
    return seen if window is None else seen & (distance < window)


def dense_mask(segments: Segments, window: int | None, device: torch.device) -> Tensor:
    """Return bool [T, T]: token i sees j if j is on i's path, not after i, and inside the window.

    Distances are counted along the path from the root, not in the packed row.
    """
    depth = path_starts(segments)
    num_tokens = max((a + n for a, n in zip(segments.starts, segments.lengths, strict=True)), default=0)
    mask = torch.zeros(num_tokens, num_tokens, dtype=torch.bool, device=device)
    for index, (start, length) in enumerate(zip(segments.starts, segments.lengths, strict=True)):
        at = torch.arange(depth[index], depth[index] + length, device=device)[:, None]
        for node in (*segments.ancestors(index), index):
            low, high = segments.starts[node], segments.starts[node] + segments.lengths[node]
            keys = torch.arange(depth[node], depth[node] + high - low, device=device)
            mask[start : start + length, low:high] = _in_reach(at - keys, window)
    return mask


def upload(numbers: npt.NDArray[np.integer[Any]], device: torch.device) -> Tensor:
    """Return host numbers as int32 on a device, which goes on working while they are copied."""
    return on_device(torch.from_numpy(numbers.astype(np.int32)), device)


def path_starts(segments: Segments) -> list[int]:
    """Return how many tokens of its path lie before each segment."""
    depth: list[int] = []
    for parent in segments.parents:
        depth.append(0 if parent < 0 else depth[parent] + segments.lengths[parent])
    return depth


@lru_cache(maxsize=16)
def plan_calls(segments: Segments, window: int | None, longest_island: int) -> tuple[Call, ...]:
    """Cover every token of the row by attention calls.

    Trees of at most ``longest_island`` tokens become one call each. Longer ones are cut into chains:
    a segment that lies directly behind its parent continues the parent's call.
    """
    calls: list[Call] = []
    for members in _islands(segments):
        first, last = members[0], members[-1]
        start, stop = segments.starts[first], segments.starts[last] + segments.lengths[last]
        if stop - start <= longest_island:
            calls.append(Call(start, stop, ((start, stop),), _shifted(segments, members, start)))
        else:
            calls.extend(_chain_call(segments, chain, window) for chain in _chains(segments, members))
    return tuple(calls)


def _islands(segments: Segments) -> list[list[int]]:
    """Split the segments into the smallest runs that no parent link crosses."""
    ends = np.cumsum((0, *segments.lengths))
    assert segments.starts == tuple(ends[:-1].tolist()), "segments must be laid out in order, without gaps"
    last = list(range(len(segments)))  # the last segment of every tree, kept at its root
    root: list[int] = []
    for index, parent in enumerate(segments.parents):
        root.append(index if parent < 0 else root[parent])
        last[root[index]] = index
    islands: list[list[int]] = []
    reach = -1
    for index in range(len(segments)):
        if index > reach:
            islands.append([])
        reach = max(reach, last[root[index]])
        islands[-1].append(index)
    return islands


def _chains(segments: Segments, members: list[int]) -> list[list[int]]:
    chains: list[list[int]] = []
    for index in members:
        previous = chains[-1][-1] if chains else -1
        if chains and segments.parents[index] == previous and _touches(segments, previous, index):
            chains[-1].append(index)
        else:
            chains.append([index])
    return chains


def _touches(segments: Segments, first: int, second: int) -> bool:
    return segments.starts[first] + segments.lengths[first] == segments.starts[second]


def _chain_call(segments: Segments, chain: list[int], window: int | None) -> Call:
    head, tail = chain[0], chain[-1]
    start, stop = segments.starts[head], segments.starts[tail] + segments.lengths[tail]
    spans: list[tuple[int, int]] = [(start, stop)]
    # the first query reaches window - 1 tokens back, so older ancestors are not even read
    reach = None if window is None else window - 1
    for node in reversed(segments.ancestors(head)):
        low, high = segments.starts[node], segments.starts[node] + segments.lengths[node]
        if reach is not None:
            low, reach = max(low, high - reach), max(0, reach - (high - low))
        if low == high:
            break
        if spans[0][0] == high:
            spans[0] = (low, spans[0][1])
        else:
            spans.insert(0, (low, high))
    return Call(start, stop, tuple(spans))


def _shifted(segments: Segments, members: list[int], start: int) -> Segments:
    place = {index: at for at, index in enumerate(members)}
    return Segments(
        starts=tuple(segments.starts[index] - start for index in members),
        lengths=tuple(segments.lengths[index] for index in members),
        parents=tuple(place.get(segments.parents[index], -1) for index in members),
    )
