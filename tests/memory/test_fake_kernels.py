"""A fake kernel takes the memory that its footprint says, and no other."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from prefopt.kernels.footprint import Footprint
from prefopt.memory.fake_kernels import _Attention
from prefopt.memory.tracking import BACKWARD, FORWARD, MemoryTracker


def test_a_footprint_becomes_bytes_that_live_as_long() -> None:
    """(30, 10, 25) beside operands of 3 x 64 bytes, a result of 64 and gradients of 3 x 64.

    Forward: 64 + 10, then 20 more at once; backward: 64 + 10 + 15, and the gradients.
    """
    with FakeTensorMode():
        parts = [torch.ones(1, 2, 4, 2, requires_grad=True) for _ in range(3)]
        upstream = torch.ones(1, 4, 2, 2)
        with MemoryTracker([*parts, upstream], FORWARD) as tracker:
            out = _Attention.apply(*parts, None, Footprint(30, 10, 25), True)
            tracker.note("between")
            tracker.phase = BACKWARD
            grads = torch.autograd.grad(out, parts, upstream)
    assert len(grads) == 3
    heights = {
        phase: max(moment.live for moment in tracker.moments if moment.phase == phase)
        for phase in (FORWARD, "between", BACKWARD)
    }
    assert heights == {FORWARD: 64 + 30, "between": 64 + 10, BACKWARD: 64 + 25 + 3 * 64}
