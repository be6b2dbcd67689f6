"""Attention over shared prefixes by flash attention over sequences of different lengths, for GPUs.

A root with its first child is one causal sequence; every other segment is a sequence of its own, whose
keys are those of its whole path. Queries keep their place in the row; keys and values are gathered, and
their gradients are added up again in one fixed order, in single precision.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from prefopt.kernels.footprint import Footprint
from prefopt.kernels.prefix_attention.flash_op import FLASH, Sequences, VarlenOp, active_name, missing
from prefopt.kernels.prefix_attention.footprint import AttentionCall
from prefopt.kernels.prefix_attention.layout import plan_calls, upload
from prefopt.kernels.prefix_attention.spec import HALF, AttentionProblem, Backend, Machine, Rule, gpu_obstacle
from prefopt.types import Segments

WIDEST = 256
"""Head size up to which flash attention goes."""
MOST_GATHERED = 8
"""Gathered keys per token of the row up to which ``auto`` gathers them.

A prompt with two answers takes at most 2; copying 8 rows for one, forward and backward, is a few per cent of
the attention to them. That is counted, not timed.
"""


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
    """Say which key rows each sequence reads, and where the gradient of each token's row was written.

    A prompt of two tokens with answers of one and two, ``P P C R R``, is the sequences ``P P C`` and ``P P R R``:
    rows 0 1 2 | 0 1 3 4. Token 0 was gathered at 0 and 3, token 1 at 1 and 4, the others once: places
    0 3 | 1 4 | 2 | 5 | 6, whose offsets are 0 2 4 5 6 7.
    """

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


def varlen_obstacle(problem: AttentionProblem, machine: Machine) -> str | None:
    """Say why flash attention cannot serve ``problem`` on ``machine``, if so."""
    return gpu_obstacle(machine, (8, 0)) or machine.gap("varlen") or _not_for_flash(problem, machine)


def _not_for_flash(problem: AttentionProblem, machine: Machine) -> str | None:
    if problem.dtype not in HALF:
        return f"computes in half precision only, not in {str(problem.dtype).removeprefix('torch.')}"
    if problem.has_softcap:
        return "has no softcap of scores"
    if problem.has_sinks:
        return "has no attention sinks"
    if problem.width != problem.value_width:
        return f"needs heads of one size but keys have {problem.width} and values {problem.value_width}"
    if problem.width % 8 or problem.width > WIDEST:
        return f"needs a head size that is a multiple of 8 up to {WIDEST}, not {problem.width}"
    # the backward of these widths asks for more shared memory than the other GPUs have
    if 192 < problem.width <= 224 and machine.capability not in ((8, 0), (9, 0), (10, 0)):
        return f"has no backward for a head size of {problem.width} on this GPU"
    return None


def copies_too_much(problem: AttentionProblem) -> str | None:
    """Say how many keys would be gathered for each token, where those are too many for ``auto``."""
    if problem.gathered <= MOST_GATHERED:
        return None
    return f"would copy {problem.gathered:.0f} keys per token"


def varlen_footprint(call: AttentionCall) -> Footprint:
    """Count ``varlen``: the keys and values of a prompt are copied for every answer but the first."""
    calls = plan_calls(call.segments, call.window, 0)
    tokens, keys = call.num_tokens, call.keys_read()
    copied = call.pairs(keys, call.key_heads, call.itemsize) if keys > tokens else 0
    kept = 4 * tokens * call.heads
    # flash attention adds up the queries' gradients in float32, with room between sequences, and makes
    # gradients of keys and values for every head of the queries before it adds them up
    rows = tokens + 128 * len(calls)
    sums = 4 * rows * call.heads * (32 * ceil(call.width / 32) + 1)
    spread = call.pairs(keys, call.heads, call.itemsize) if call.heads != call.key_heads else 0
    return Footprint(kept + copied, kept, kept + 2 * copied + sums + spread)


BACKEND = Backend(
    "varlen",
    varlen_attention,
    varlen_footprint,
    obstacle=varlen_obstacle,
    missing=missing,
    reluctance=copies_too_much,
    variant=active_name,
)
