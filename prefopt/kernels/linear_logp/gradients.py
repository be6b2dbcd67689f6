"""The gradients of a linear head, added up from those of its logits, chunk of rows by chunk of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prefopt.kernels.linear_logp.gemm import accumulate, pull_back
from prefopt.kernels.linear_logp.spec import HeadInputs


class HeadGradients:
    """Add up what chunks of the logits' gradient say of the hidden states and the head.

    Args:
        inputs: the hidden states, the head and the row index.
        wanted: of hidden, weight, bias, x2 and w2, which are.
        dtype: in which operands are multiplied.
    """

    def __init__(self, inputs: HeadInputs, wanted: Sequence[bool], dtype: torch.dtype) -> None:
        self.inputs, self.wanted, self.gemm = inputs, wanted, dtype
        self.x = inputs.pick(inputs.hidden)
        self.x2 = None if inputs.x2 is None else inputs.pick(inputs.x2)
        self.dx: list[Tensor] = []
        self.dx2: list[Tensor] = []
        self.dw: Tensor | None = None
        self.dw2: Tensor | None = None
        self.db: Tensor | None = None

    def add(self, dz: Tensor, low: int, high: int) -> None:
        """Add the part of rows [low, high), the chunks being given in order.

        Args:
            dz: [high - low, V], the gradient of ``x @ W.T + x2 @ w2.T + bias``.
        """
        inputs, (hidden, weight, bias, x2, w2) = self.inputs, self.wanted
        if hidden:
            self.dx.append(pull_back(dz, inputs.weight, self.gemm))
        if x2 and inputs.w2 is not None:
            self.dx2.append(pull_back(dz, inputs.w2, self.gemm))
        if bias:
            total = dz.sum(0)
            self.db = total if self.db is None else self.db.add_(total)
        if weight:
            self.dw = accumulate(self.dw, dz, self.x[low:high], self.gemm)
        if w2 and self.x2 is not None:
            self.dw2 = accumulate(self.dw2, dz, self.x2[low:high], self.gemm)

    def gather(self) -> tuple[Tensor | None, ...]:
        """Return the gradients of hidden, weight, bias, x2 and w2, each in its input's dtype."""
        inputs = self.inputs

        def rows(parts: list[Tensor], like: Tensor | None, wanted: bool) -> Tensor | None:
            if like is None or not wanted:
                return None
            joined = torch.cat(parts) if parts else like.new_empty((0, like.shape[1]))
            return scatter(joined, inputs.rows, like.shape, like.dtype)

        def head(total: Tensor | None, like: Tensor | None, wanted: bool) -> Tensor | None:
            if like is None or not wanted:
                return None
            # zeros, not None: data-parallel engines wait for a gradient of every trained weight
            return torch.zeros_like(like) if total is None else total.to(like.dtype)

        return (
            rows(self.dx, inputs.hidden, self.wanted[0]),
            head(self.dw, inputs.weight, self.wanted[1]),
            head(self.db, inputs.bias, self.wanted[2]),
            rows(self.dx2, inputs.x2, self.wanted[3]),
            head(self.dw2, inputs.w2, self.wanted[4]),
        )


def frozen_gradients(ctx: Any, upstream: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return the gradients of hidden, weight, bias, x2 and w2 where the head is frozen.

    Args:
        ctx: has saved the row index and, of each row, the derivative by ``x`` and by ``x2``, if wanted; its
            ``like`` tells shape and dtype of hidden and ``x2``.
        upstream: [M], of the one output.
    """
    rows, *units = ctx.saved_tensors
    found: list[Tensor | None] = []
    for unit, like, wanted in zip(units, ctx.like, ctx.needs_input_grad[0:4:3], strict=True):
        if upstream is None or unit is None or not wanted:
            found.append(None)
        else:
            found.append(scatter(unit * upstream[:, None], rows, *like))
    return found[0], None, None, found[1], None


def scatter(values: Tensor, rows: Tensor | None, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Add the gradient of every scored row to the hidden row it came from."""
    if rows is None:
        return values.to(dtype)
    total = values.new_zeros(shape)
    if values.device.type == "cpu":
        return total.index_add_(0, rows, values).to(dtype)
    # sorts before it adds, so repeated rows are summed in one fixed order
    return total.index_put_((rows,), values, accumulate=True).to(dtype)
