"""What a computation with real tensors holds, for tests of what it was said to hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from prefopt.memory.tracking import MemoryTracker


@dataclass(frozen=True)
class Held:
    """Bytes that were alive besides the tensors known before."""

    forward: int  # at most
    kept: int  # between the two
    backward: int  # at most


def held(forward: Callable[[], Tensor], known: Iterable[Tensor]) -> Held:
    """Run a function and the backward of what it returns, and count what is alive on the way."""
    tracker = MemoryTracker(known, "forward")
    with tracker:
        total = forward()
        tracker.note("kept")
        tracker.phase = "backward"
        torch.autograd.backward(total)

    def most(phase: str) -> int:
        return max(moment.live + moment.gradients for moment in tracker.moments if moment.phase == phase)

    return Held(most("forward"), most("kept"), most("backward"))
