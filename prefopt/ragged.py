"""Ragged rows: how many tokens each run holds, on the host and on the device, and gathers of whole runs.

A step must not wait for its GPU, and every ordinary copy of host numbers does: the driver first finishes
all work queued before it. What sums and gathers need is therefore made where the batch is made, on the
host, moved with it, and kept for every later use.

Runs of 2, 1 and 3 tokens lie at 0-1, 2 and 3-5. The third, then the first:

>>> take = Lengths((2, 1, 3)).take([2, 0], torch.device("cpu"))
>>> take.lengths, take.tokens.tolist()
((3, 2), [3, 4, 5, 0, 1])
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from typing_extensions import Self

Change = Callable[[Tensor], Tensor]

ASYNCHRONOUS = {"cuda"}
"""Devices that go on working while the host does something else."""


def pinned(host: Tensor) -> Tensor:
    """Copy a host tensor into memory from which a GPU reads while the host goes on."""
    return host.pin_memory()


def on_device(
    values: Tensor | Sequence[Any], device: torch.device | str, dtype: torch.dtype | None = None
) -> Tensor:
    """Copy host numbers to a device without waiting for it.

    Args:
        values: numbers, or a tensor, on the host.
        device: where to.
        dtype: of the result; None keeps that of ``values``.
    """
    host, device = torch.as_tensor(values, dtype=dtype), torch.device(device)
    if device.type in ASYNCHRONOUS:
        return pinned(host).to(device, non_blocking=True)
    return host.to(device)


def _kept() -> AbstractContextManager[Any]:
    """Make tensors that a later use may keep for its backward, wherever they are first asked for."""
    if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():  # asking would end a graph
        return nullcontext()
    return torch.inference_mode(mode=False)


@dataclass(frozen=True, slots=True)
class Take:
    """Whole runs picked out of a ragged row; repeats are allowed."""

    lengths: Lengths  # of the picked runs
    runs: Tensor  # int64 [len(lengths)], which runs
    tokens: Tensor  # int64 [sum(lengths)], where their tokens lie

    def apply(self, change: Change) -> Take:
        """Return the same with every tensor changed."""
        return Take(self.lengths.apply(change), change(self.runs), change(self.tokens))


class Lengths(tuple[int, ...]):  # noqa: SLOT001 (a tuple of any length cannot have slots that hold something)
    """Tokens of each run: host ints that know themselves on a device.

    A plain tuple would be copied to the device anew by every sum; this one goes there once. It also
    keeps the gathers that were made from it, so that policy and reference share them.
    """

    _counts: Tensor | None
    _takes: dict[tuple[int, ...], Take]

    def __new__(cls, values: Iterable[int] = ()) -> Self:
        self = super().__new__(cls, values)
        self._counts, self._takes = None, {}
        return self

    @classmethod
    def of(cls, values: Iterable[int]) -> Lengths:
        """Return ``values`` themselves if they are lengths already."""
        return values if isinstance(values, Lengths) else cls(values)

    def on(self, device: torch.device) -> Tensor:
        """Return the lengths as int64 [S] on ``device``."""
        if self._counts is None or self._counts.device != device:
            with _kept():
                self._counts = on_device(list(self), device, torch.int64)
        return self._counts

    def take(self, index: Iterable[int], device: torch.device) -> Take:
        """Return what gathers the runs ``index``, in that order, on ``device``."""
        key = tuple(index)
        found = self._takes.get(key)
        if found is None or found.tokens.device != device:
            with _kept():
                found = self._gather(key).apply(lambda tensor: on_device(tensor, device))
            self._takes[key] = found
        return found

    def apply(self, change: Change) -> Lengths:
        """Return the same lengths with every tensor that was made of them changed."""
        twin = Lengths(self)
        with _kept():
            twin._counts = None if self._counts is None else change(self._counts)
            twin._takes = {key: take.apply(change) for key, take in self._takes.items()}
        return twin

    def _gather(self, index: tuple[int, ...]) -> Take:
        if outside := [i for i in index if not 0 <= i < len(self)]:
            raise ValueError(f"take: there is no run {outside[0]} among {len(self)}. Count from 0.")
        ends = (0, *accumulate(self))
        spans = [np.arange(ends[i], ends[i + 1]) for i in index]
        tokens = np.concatenate([*spans, np.empty(0, np.int64)]).astype(np.int64)
        lengths = Lengths([self[i] for i in index])  # no generator, which torch.compile cannot leave half-way
        lengths.on(torch.device("cpu"))
        return Take(lengths, torch.tensor(index, dtype=torch.int64), torch.from_numpy(tokens))
