"""Whether weights are numbers, in one pass over them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from prefopt.engine.sharding import local

_WIDE_ENOUGH = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@torch.no_grad()
def find_nonfinite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Say which tensor holds NaN or infinity and at how many places; None where every number is finite.

    Waits once for the device. Of a tensor that is spread over ranks it reads this rank's share.

    Args:
        tensors: by name; what holds no floating-point numbers is passed over.
    """
    named = [(name, local(tensor.detach())) for name, tensor in tensors]
    named = [(name, own) for name, own in named if own.is_floating_point() and own.numel()]
    if not named:
        return None
    # smallest and largest are NaN where any number is, and need no memory, as a mask of all numbers would
    ends = [end for _, own in named for end in torch.aminmax(_wide(own))]
    are_bad = ~torch.isfinite(torch.stack([end.to(ends[0].device, torch.float64) for end in ends]))
    at = are_bad.view(-1, 2).any(1).nonzero().flatten().tolist()
    return _describe([named[index] for index in at]) if at else None


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype in _WIDE_ENOUGH else tensor.float()


def _describe(bad: list[tuple[str, Tensor]]) -> str:
    name, tensor = bad[0]
    kinds = {"NaN": torch.isnan, "infinity": torch.isinf}
    counts = {kind: int(test(_wide(tensor)).sum()) for kind, test in kinds.items()}
    found = " and ".join(f"{kind} at {count}" for kind, count in counts.items() if count)
    more = f", and {len(bad) - 1} other tensors are not finite" if len(bad) > 1 else ""
    return f"{name} holds {found} of {tensor.numel()} places{more}"
