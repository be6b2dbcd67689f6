"""Attention over shared prefixes by flash attention over sequences of different lengths, for GPUs.

A root with its first child is one causal sequence; every other segment is a sequence of its own, whose
keys are those of its whole path. Queries keep their place in the row; keys and values are gathered, and
their gradients are added up again in one fixed order, in single precision.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from prefopt.kernels.prefix_attention.flash_op import FLASH, Sequences, VarlenOp
from prefopt.kernels.prefix_attention.layout import plan_calls, upload
from prefopt.kernels.prefix_attention.spec import Rule
from prefopt.types import Segments


def varlen_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sinks: Tensor | None,
    segments: Segments,
    rule: Rule,
    *,
    op: VarlenOp = FLASH,
) -> Tensor:
    """Attend along every token's path in one call of ``op``.

    Args:
        query: [1, Hq, T, d].
        key: [1, Hkv, T, d].
        value: [1, Hkv, T, d].
        sinks: must be None, as must the rule's softcap: the op has neither.
        segments: the forest.
        rule: scaling and window.
        op: attends over the sequences; it defines which dtypes and widths can be served.

    Returns:
        [1, T, Hq, d].
    """
    assert sinks is None and rule.softcap is None, "flash attention has neither sinks nor a softcap"
    gather = gather_of(segments, rule.window, query.device)
    apply: Callable[..., Tensor] = _VarlenAttention.apply
    out = apply(*(part[0].transpose(0, 1) for part in (query, key, value)), gather, rule, op)
    return out[None]


class _VarlenAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, gather: Gather, rule: Rule, op: VarlenOp
    ) -> Tensor:
        q, k, v = (part if part.stride(-1) == 1 else part.contiguous() for part in (q, k, v))
        out, lse = op.forward(q, gather.take(k), gather.take(v), gather.sequences, rule.scaling, rule.window)
        ctx.gather, ctx.rule, ctx.op = gather, rule, op
        # not the gathered keys: they are the largest tensors here and are soon gathered again
        ctx.save_for_backward(q, k, v, out, lse)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        gather: Gather = ctx.gather
        q, k, v, out, lse = ctx.saved_tensors
        dq, dkeys, dvalues = ctx.op.backward(
            dout.contiguous(),
            q,
            gather.take(k),
            gather.take(v),
            out,
            lse,
            gather.sequences,
            ctx.rule.scaling,
            ctx.rule.window,
        )
        return dq, gather.give(dkeys), gather.give(dvalues), None, None, None


@dataclass(frozen=True, slots=True)
class Gather:
    """Say which key rows each sequence reads, and where the gradient of each token's row was written."""

    sequences: Sequences
    rows: Tensor | None  # int32 [Tk], the token behind every gathered row; None: the row as it is
    places: Tensor  # int32 [Tk], gathered rows ordered by token, then by sequence
    offsets: Tensor  # int32 [T + 1], where each token's places begin

    def take(self, values: Tensor) -> Tensor:
        """Return the rows [Tk, H, d] that the sequences read, out of [T, H, d]."""
        return values if self.rows is None else values.index_select(0, self.rows)

    def give(self, grads: Tensor) -> Tensor:
        """Add up the gradients [Tk, H, d] of every token's rows; return [T, H, d].

        A bag of rows is summed by one thread after the other row, in single precision, and rounded once.
        """
        if self.rows is None:
            return grads
        _, heads, width = grads.shape
        total = F.embedding_bag(
            self.places, grads.flatten(1), self.offsets, mode="sum", include_last_offset=True
        )
        return total.view(-1, heads, width)


@lru_cache(maxsize=8)
def gather_of(segments: Segments, window: int | None, device: torch.device) -> Gather:
    """Work out on the host, and copy to ``device``, what every layer of a batch shares."""
    calls = plan_calls(segments, window, 0)
    queries = np.array([call.num_queries for call in calls])
    keys = np.array([call.num_keys for call in calls])
    rows = np.concatenate([np.arange(low, high) for call in calls for low, high in call.spans])
    num_tokens = int(queries.sum())
    counts = np.bincount(rows, minlength=num_tokens)
    return Gather(
        Sequences(
            upload(_ends(queries), device),
            upload(_ends(keys), device),
            longest_queries=int(queries.max()),
            longest_keys=int(keys.max()),
        ),
        rows=None if len(rows) == num_tokens else upload(rows, device),
        places=upload(np.argsort(rows, kind="stable"), device),
        offsets=upload(_ends(counts), device),
    )


def _ends(counts: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.concatenate([[0], np.cumsum(counts)])
