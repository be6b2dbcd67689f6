"""The three matrix products of a linear head, accumulated in float32 (or float64) for every dtype.

Weights in half precision are widened block by block, so no full-precision copy of the head exists.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK_ELEMENTS = 1 << 24
"""Weight entries widened at a time: 64 MiB in float32."""


def gemm_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """Return the dtype in which operands are multiplied; sums are always float32 or float64."""
    if hidden.device.type == "cpu":
        # the CPU's half-precision products round their sums, which costs up to 0.1 nat per token
        return torch.promote_types(torch.promote_types(hidden.dtype, weight.dtype), torch.float32)
    return product_dtype(hidden, weight)


def product_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """Return the dtype in which tensor cores multiply: autocast's where it is on, else the wider one."""
    device = hidden.device.type
    wide = torch.promote_types(hidden.dtype, weight.dtype)
    if wide != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return wide


def multiply(
    a: Tensor, b: Tensor, dtype: torch.dtype, out: Tensor | None = None, add: bool = False
) -> Tensor:
    """Return ``a @ b``, operands in ``dtype`` and sums in float32 or wider, written or added into ``out``."""
    a, b = a.to(dtype), b.to(dtype)
    if dtype not in (torch.float32, torch.float64):
        if a.device.type == "cuda":
            return _multiply_half(a, b, out, add)
        a, b = a.float(), b.float()
    if out is None:
        return torch.mm(a, b)
    return out.addmm_(a, b) if add else torch.mm(a, b, out=out)


def _multiply_half(a: Tensor, b: Tensor, out: Tensor | None, add: bool) -> Tensor:
    if out is None:
        return torch.mm(a, b, out_dtype=torch.float32)
    if add:
        return torch.addmm(out, a, b, out_dtype=torch.float32, out=out)
    return torch.mm(a, b, out_dtype=torch.float32, out=out)


def project(x: Tensor, weight: Tensor, out: Tensor, dtype: torch.dtype, add: bool = False) -> None:
    """Write ``x @ weight.T`` [M, V] into ``out``, or add it."""
    x = x.to(dtype)
    for low, high, block in _blocks(weight, dtype):
        multiply(x, block.T, dtype, out[:, low:high], add)


def pull_back(dz: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``dz @ weight`` [M, D]: the gradient that reaches the hidden states."""
    total: Tensor | None = None
    for low, high, block in _blocks(weight, dtype):
        total = multiply(dz[:, low:high], block, dtype, total, add=total is not None)
    assert total is not None
    return total


def accumulate(total: Tensor | None, dz: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``total + dz.T @ x`` [V, D], in place after the first call: the weight's gradient."""
    return multiply(dz.T, x, dtype, total, add=total is not None)


def _blocks(weight: Tensor, dtype: torch.dtype) -> Iterator[tuple[int, int, Tensor]]:
    vocabulary = weight.shape[0]
    if weight.dtype == dtype:
        yield 0, vocabulary, weight
        return
    step = max(1, BLOCK_ELEMENTS // max(1, weight.shape[1]))
    for low in range(0, vocabulary, step):
        high = min(low + step, vocabulary)
        yield low, high, weight[low:high].to(dtype)
