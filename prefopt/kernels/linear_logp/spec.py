"""What the back-ends of ``token_logps`` share: their arguments, gathered, and the working precision."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LOG_ZERO = -1e4
"""Stands for log 0 in p log p: finite, and far below the point where p underflows to exactly 0."""


@dataclass(frozen=True, slots=True)
class Spec:
    """Describe one call: the head's transform, the statistics wanted and how to get gradients."""

    scale: float
    softcap: float | None
    stats: tuple[str, ...]
    mode: str


@dataclass(frozen=True, slots=True)
class HeadInputs:
    """Hold the tensors that make the logits ``hidden[rows] @ weight.T + x2[rows] @ w2.T + bias``."""

    hidden: Tensor  # [N, D]
    weight: Tensor  # [V, D]
    bias: Tensor | None  # [V]
    x2: Tensor | None  # [N, r]
    w2: Tensor | None  # [V, r]
    rows: Tensor | None  # int64 [M]
    ignored: Tensor | None = None  # bool [M], rows to replace by zeros

    def pick(self, values: Tensor) -> Tensor:
        """Return the rows of ``values`` that are scored, zeros where ignored: [M, width]."""
        picked = values if self.rows is None else values.index_select(0, self.rows)
        return picked if self.ignored is None else picked.masked_fill(self.ignored[:, None], 0.0)

    def head_needs_grad(self) -> bool:
        """Tell whether any weight of the head is trained."""
        return any(part is not None and part.requires_grad for part in (self.weight, self.bias, self.w2))

    def needs_grad(self) -> bool:
        """Tell whether anything here wants a gradient."""
        inputs = (self.hidden, self.x2)
        return self.head_needs_grad() or any(part is not None and part.requires_grad for part in inputs)


def accumulate_dtype(*tensors: Tensor) -> torch.dtype:
    """Return float64 if any tensor is float64, else float32: what logits and statistics are held in."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
