"""One problem of head log-probs: random inputs, what is asked for, and the float64 truth."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

TASKS = {"trained": 4, "frozen": 2, "no_grad": 1}
"""What is asked for, and the products of 2 N V H operations that its floor counts.

trained: gradients of hidden states and head; frozen: of the hidden states; no_grad: none. Four products
are what an op needs that keeps no [N, V] matrix. Those that keep one need three, so they can exceed it.
"""


@dataclass(frozen=True, slots=True)
class Inputs:
    """One drawing of a problem; the upstream gradient has both signs."""

    hidden: Tensor
    weight: Tensor
    targets: Tensor
    upstream: Tensor


def draw(
    shape: tuple[int, int, int], dtype: torch.dtype, device: str, seed: int, weight: Tensor | None
) -> Inputs:
    """Draw a problem whose logits have a standard deviation of 3, as those of language models do."""
    rows, width, vocab = shape
    generator = torch.Generator(device).manual_seed(seed)
    normal = partial(torch.randn, generator=generator, device=device)
    if weight is None:
        weight = (3 * normal(vocab, width) / width**0.5).to(dtype)
    targets = torch.randint(vocab, (rows,), generator=generator, device=device)
    return Inputs(normal(rows, width).to(dtype), weight, targets, normal(rows))


def truth(inputs: Inputs, wants_weight: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return log-probs and the gradients of hidden states and weight, in float64, from the formulas."""
    h, w = inputs.hidden.double(), inputs.weight.double()
    logps, dh = torch.empty_like(h[:, 0]), torch.empty_like(h)
    dw = torch.zeros_like(w) if wants_weight else None
    for low in range(0, len(h), 256):
        at = slice(low, low + 256)
        label, upstream = inputs.targets[at, None], inputs.upstream[at, None].double()
        log_p = torch.log_softmax(h[at] @ w.T, dim=-1)
        logps[at] = log_p.gather(1, label).squeeze(1)
        dz = log_p.exp_().mul_(-upstream).scatter_add_(1, label, upstream)
        dh[at] = dz @ w
        if dw is not None:
            dw.addmm_(dz.T, h[at])
    return logps, dh, dw
