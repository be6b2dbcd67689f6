"""Attention over shared prefixes call by call, without any [T, T] mask: the CPU path, right anywhere.

A tree is one call under its own mask, in blocks of queries that read only the keys before them: large
matrix products, whose weights are kept for the backward. Trees too long for that are cut into chains:
the root with its first child is plain causal attention, every other segment attends to [its ancestors;
itself]. On the CPU chains run through torch's fused attention; softcaps, sinks and other devices take
the explicit softmax, in blocks of queries that the backward computes again.

A prompt of two tokens with answers of one and two is the row ``P P C R R``, tokens 0 to 4:

    as a tree    one call          queries 0-4 see     0 | 0 1 | 0 1 2 | 0 1 3 | 0 1 3 4
    as chains    call of P P C     queries 0 1 2 see   0 | 0 1 | 0 1 2     causal, keys [0, 3)
                 call of R R       queries 3 4 see     0 1 3 | 0 1 3 4     keys [0, 2) and [3, 5)

In the backward a call's own tokens come first and ancestors are added to: where the first chain gives its keys the
gradients 1 2 3 and the second gives 10 20 4 5, the row's are 11 22 3 4 5.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from prefopt.kernels.footprint import Footprint
from prefopt.kernels.prefix_attention.footprint import AttentionCall
from prefopt.kernels.prefix_attention.layout import Call, plan_calls
from prefopt.kernels.prefix_attention.segment_cores import BLOCK_BYTES, DENSE_ROWS, core_of
from prefopt.kernels.prefix_attention.spec import Backend, Rule
from prefopt.types import Segments

LONGEST_DENSE = 1024
"""Trees up to this many tokens take one call each; beyond it skipping masked work pays."""
DENSE_BYTES = 16 << 20
"""Attention weights [H, L, L] / 2 that one such call may keep for the backward."""


def segment_attention(
    query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None, segments: Segments, rule: Rule
) -> Tensor:
    """Attend along every token's path, one call per short tree or chain of segments."""
    longest = int((2 * DENSE_BYTES // (4 * query.shape[1])) ** 0.5)
    calls = plan_calls(segments, rule.window, min(LONGEST_DENSE, longest))
    apply: Callable[..., Tensor] = _SegmentAttention.apply
    return apply(query, key, value, sinks, calls, rule, torch.is_grad_enabled())


class _SegmentAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        sinks: Tensor | None,
        calls: tuple[Call, ...],
        rule: Rule,
        has_backward: bool,
    ) -> Tensor:
        num_heads = query.shape[1]
        out = value.new_empty((1, query.shape[2], num_heads, value.shape[3]))
        kept: list[Tensor] = []
        counts: list[int] = []
        with torch.autocast(query.device.type, enabled=False):
            q, k, v = query[0], _repeat(key[0], num_heads), _repeat(value[0], num_heads)
            for at, call in enumerate(calls):
                core = core_of(calls, at, rule, q, v, sinks)
                result, state = core.forward(q[:, call.start : call.stop], _take(k, call), _take(v, call))
                out[0, call.start : call.stop] = result.transpose(0, 1)
                if has_backward:
                    kept += state
                    counts.append(len(state))
        ctx.calls, ctx.rule, ctx.counts = calls, rule, counts
        ctx.save_for_backward(query, key, value, sinks, out, *kept)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, sinks, out, *kept = ctx.saved_tensors
        num_heads, states = query.shape[1], iter(kept)
        with torch.autocast(query.device.type, enabled=False):
            q, k, v = query[0], _repeat(key[0], num_heads), _repeat(value[0], num_heads)
            dq = torch.empty_like(query)
            dk, dv = _like_rows(k), _like_rows(v)
            dsinks = None if sinks is None else dk.new_zeros(num_heads)
            for at, call in enumerate(ctx.calls):
                state = tuple(islice(states, ctx.counts[at]))
                core = core_of(ctx.calls, at, ctx.rule, q, v, sinks)
                rows = slice(call.start, call.stop)
                do, o = upstream[0, rows].transpose(0, 1), out[0, rows].transpose(0, 1)
                dq[0, :, rows], dkeys, dvalues = core.backward(
                    do, q[:, rows], _take(k, call), _take(v, call), o, state, dsinks
                )
                _give(dk, dkeys, call)
                _give(dv, dvalues, call)
        sink_grad = None if sinks is None or dsinks is None else dsinks.to(sinks.dtype)
        return dq, _sum_repeats(dk, key), _sum_repeats(dv, value), sink_grad, None, None, None


def _repeat(values: Tensor, num_heads: int) -> Tensor:
    """Repeat key or value heads [Hkv, T, d] until there is one per query head."""
    repeats = num_heads // values.shape[0]
    return values if repeats == 1 else values.repeat_interleave(repeats, dim=0)


def _sum_repeats(total: Tensor, like: Tensor) -> Tensor:
    """Undo ``_repeat`` for a gradient [H, T, d], in the shape and dtype of ``like``."""
    if total.shape[0] != like.shape[1]:
        _, tokens, width = total.shape
        total = total.reshape(like.shape[1], -1, tokens, width).sum(1)
    return total.to(like.dtype)[None]


def _like_rows(values: Tensor) -> Tensor:
    """Return an empty [H, T, d] laid out token by token, wide enough to add up gradients in.

    A prompt collects gradients from all its answers; in half precision such a sum drifts.
    """
    heads, tokens, width = values.shape
    dtype = torch.promote_types(values.dtype, torch.float32)
    return values.new_empty((tokens, heads, width), dtype=dtype).transpose(0, 1)


def _take(values: Tensor, call: Call) -> Tensor:
    if len(call.spans) == 1:
        return values[:, call.spans[0][0] : call.spans[0][1]]
    return torch.cat([values[:, low:high] for low, high in call.spans], dim=1)


def _give(total: Tensor, grads: Tensor, call: Call) -> None:
    """Spread a call's key gradients over the row: its own tokens are met first here, ancestors again."""
    before = call.num_keys - call.num_queries
    total[:, call.start : call.stop] = grads[:, before:]
    at = 0
    for low, high in call.spans:
        high = min(high, low + before - at)
        if low < high:
            total[:, low:high] += grads[:, at : at + high - low]
            at += high - low


def segment_footprint(call: AttentionCall) -> Footprint:
    """Count ``segments``: whole trees keep their weights, chains the log-sum-exp of every query."""
    longest = min(LONGEST_DENSE, int((2 * DENSE_BYTES // (4 * call.heads)) ** 0.5))
    counts = [_count(call, each) for each in plan_calls(call.segments, call.window, longest)]
    kept = sum(each.kept for each in counts)
    tokens, repeats = call.num_tokens, call.heads != call.key_heads
    repeated = call.pairs(tokens, call.heads, call.itemsize) if repeats else 0
    # gradients of keys and values are added up in full precision, head by head, before they become the caller's
    sums = call.pairs(tokens, call.heads, call.wide)
    given = call.pairs(tokens, call.key_heads, call.itemsize)
    joined = call.pairs(tokens, call.key_heads, call.wide) // 2 if repeats else 0
    if not repeats and call.itemsize == call.wide:
        joined -= given
    forward = max((each.forward for each in counts), default=0)
    backward = max((each.backward for each in counts), default=0)
    return Footprint(kept + repeated + forward, kept, kept + repeated + sums + max(backward - given, joined))


def _count(call: AttentionCall, each: Call) -> Footprint:
    """Count one call of ``segments``; forward and backward leave out what is kept."""
    queries, keys = each.num_queries, each.num_keys
    row = call.heads * (2 * call.width + call.value_width)  # a token's query, key and value
    if each.groups is not None and not call.is_explicit:
        ends = [min(low + DENSE_ROWS, queries) for low in range(0, queries, DENSE_ROWS)]
        scores = sum((high - low) * high for low, high in zip((0, *ends), ends, strict=False))
        block = call.heads * min(DENSE_ROWS, queries) * queries * call.wide
        operands = queries * row * call.wide if call.itemsize < call.wide else 0
        out = call.heads * queries * call.value_width * call.wide
        # the upstream gradient is widened too, and products lay some operands out anew
        backward = 2 * block + operands + (out if operands else 0) + queries * row * call.wide + 2 * out
        return Footprint(block + operands + 2 * out, scores * call.heads * call.wide, backward)
    lse = call.heads * queries * call.wide
    # distances are counted in int64 before they are compared
    mask = 0 if each.is_causal(call.window) else 10 * queries * keys
    copies = call.pairs(keys, call.heads, call.itemsize) if len(each.spans) > 1 else 0
    if call.device == "cpu" and not call.is_explicit and call.width == call.value_width:
        out = call.heads * queries * call.value_width * call.itemsize
        grads = call.heads * queries * call.width * call.itemsize + call.pairs(
            keys, call.heads, call.itemsize
        )
        return Footprint(copies + mask + out, lse, copies + mask + grads)
    block = min(BLOCK_BYTES, call.heads * queries * keys * call.wide)
    operands = keys * row * call.wide
    return Footprint(copies + operands + block, lse, copies + 2 * operands + 3 * block)


BACKEND = Backend("segments", segment_attention, segment_footprint)
