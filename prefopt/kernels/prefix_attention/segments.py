"""Attention over shared prefixes call by call, without any [T, T] mask: the CPU path, right anywhere.

A tree is one call under its own mask, in blocks of queries that read only the keys before them: large
matrix products, whose weights are kept for the backward. Trees too long for that are cut into chains:
the root with its first child is plain causal attention, every other segment attends to [its ancestors;
itself]. On the CPU chains run through torch's fused attention; softcaps, sinks and other devices take
the explicit softmax, in blocks of queries that the backward computes again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from prefopt.kernels.prefix_attention.layout import Call, plan_calls
from prefopt.kernels.prefix_attention.spec import Rule
from prefopt.types import Segments

LONGEST_DENSE = 1024
"""Trees up to this many tokens take one call each; beyond it skipping masked work pays."""
DENSE_BYTES = 16 << 20
"""Attention weights [H, L, L] / 2 that one such call may keep for the backward."""
DENSE_ROWS = 80
"""Queries per block of such a call: fewer make small products, more read keys that no query may see."""
BLOCK_BYTES = 64 << 20
"""Scores held at a time by the explicit softmax over a long chain."""

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def segment_attention(
    query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None, segments: Segments, rule: Rule
) -> Tensor:
    """Attend along every token's path, one call per short tree or chain of segments."""
    longest = int((2 * DENSE_BYTES // (4 * query.shape[1])) ** 0.5)
    calls = plan_calls(segments, rule.window, min(LONGEST_DENSE, longest))
    apply: Callable[..., Tensor] = _SegmentAttention.apply
    return apply(query, key, value, sinks, calls, rule, torch.is_grad_enabled())


_State = tuple[Tensor, ...]
"""What a call keeps for its backward."""


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
                core = _core(calls, at, rule, q, v, sinks)
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
                core = _core(ctx.calls, at, ctx.rule, q, v, sinks)
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


def _core(calls: tuple[Call, ...], at: int, rule: Rule, q: Tensor, v: Tensor, sinks: Tensor | None) -> _Core:
    if rule.softcap is not None or sinks is not None:
        return _Explicit(calls, at, rule, sinks)
    if calls[at].groups is not None:
        return _Dense(calls, at, rule, sinks)
    # torch's fused op needs one width for queries, keys and values
    is_fused = q.device.type == "cpu" and q.shape[2] == v.shape[2]
    return (_Fused if is_fused else _Explicit)(calls, at, rule, sinks)


class _Core:
    """Attend for one call; ``forward`` returns the output [H, n, dv] and the state its backward needs."""

    def __init__(self, calls: tuple[Call, ...], at: int, rule: Rule, sinks: Tensor | None) -> None:
        self.calls, self.at, self.call = calls, at, calls[at]
        self.rule, self.sinks = rule, sinks

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, _State]:
        raise NotImplementedError

    def backward(
        self, do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, state: _State, dsinks: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of q, k and v; add that of the sinks to ``dsinks``."""
        raise NotImplementedError


class _Fused(_Core):
    """A chain through torch's fused CPU attention; its state is the log-sum-exp of every query."""

    def _mask(self, q: Tensor) -> tuple[bool, Tensor | None]:
        if self.call.is_causal(self.rule.window):
            return True, None
        return False, _additive_mask(self.call, self.rule.window, q.dtype, q.device)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, _State]:
        causal, mask = self._mask(q)
        out, lse = _flash(q[None], k[None], v[None], 0.0, causal, attn_mask=mask, scale=self.rule.scaling)
        return out[0], (lse,)

    def backward(
        self, do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, state: _State, dsinks: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        causal, mask = self._mask(q)
        batch = [t[None] for t in (do, q, k, v, o)]
        grads: Sequence[Tensor] = _flash_backward(
            *batch, state[0], 0.0, causal, attn_mask=mask, scale=self.rule.scaling
        )
        return grads[0][0], grads[1][0], grads[2][0]


class _Dense(_Core):
    """A whole tree under its mask; its state is the attention weights of every block of queries.

    A block ends with its last query: later tokens of the row are no ancestors of it.
    """

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, _State]:
        dtype = torch.promote_types(q.dtype, torch.float32)
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
        outs, state = [], []
        for mask in _tree_masks(self.calls, self.rule.window, DENSE_ROWS, dtype, q.device)[self.at]:
            low, high = mask.shape[1] - mask.shape[0], mask.shape[1]
            scores = torch.baddbmm(mask, q[:, low:high], k[:, :high].transpose(1, 2), alpha=self.rule.scaling)
            weights = scores.softmax(-1)  # [H, high - low, high]
            outs.append(weights @ v[:, :high])
            state.append(weights)
        return outs[0] if len(outs) == 1 else torch.cat(outs, dim=1), tuple(state)

    def backward(
        self, do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, state: _State, dsinks: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        dtype = state[0].dtype
        do, q, k, v = (t.to(dtype) for t in (do, q, k, v))
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for weights in state:
            low, high = weights.shape[2] - weights.shape[1], weights.shape[2]
            rows, dout = q[:, low:high], do[:, low:high]
            dweights = dout @ v[:, :high].transpose(1, 2)
            dscores = torch._softmax_backward_data(dweights, weights, -1, dtype)
            dq[:, low:high] = (dscores @ k[:, :high]).mul_(self.rule.scaling)
            dk[:, :high].baddbmm_(dscores.transpose(1, 2), rows, alpha=self.rule.scaling)
            dv[:, :high].baddbmm_(weights.transpose(1, 2), dout)
        return dq, dk, dv


class _Explicit(_Core):
    """The softmax spelt out, in blocks of queries; its state is the log-sum-exp of every query [H, n]."""

    def _blocks(self, q: Tensor) -> Iterator[tuple[slice, Tensor]]:
        heads, count, _ = q.shape
        step = max(1, BLOCK_BYTES // (4 * heads * max(1, self.call.num_keys)))
        for low in range(0, count, step):
            high = min(low + step, count)
            yield slice(low, high), self.call.visible(self.rule.window, q.device, low, high)

    def _scores(self, q: Tensor, k: Tensor, visible: Tensor) -> Tensor:
        scores = (q @ k.transpose(1, 2)).mul_(self.rule.scaling)
        if self.rule.softcap is not None:
            scores.div_(self.rule.softcap).tanh_().mul_(self.rule.softcap)
        return scores.masked_fill_(~visible, float("-inf"))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, _State]:
        dtype = torch.promote_types(q.dtype, torch.float32)
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
        out = q.new_empty((*q.shape[:2], v.shape[2]))
        lse = q.new_empty(q.shape[:2])
        for at, visible in self._blocks(q):
            scores = self._scores(q[:, at], k, visible)
            total = scores.logsumexp(-1)
            if self.sinks is not None:
                total = torch.logaddexp(total, self.sinks.to(dtype)[:, None])
            out[:, at] = scores.sub_(total[..., None]).exp_() @ v
            lse[:, at] = total
        return out, (lse,)

    def backward(
        self, do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, state: _State, dsinks: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        (lse,) = state
        do, q, k, v, o = (t.to(lse.dtype) for t in (do, q, k, v, o))
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        drift = (do * o).sum(-1)  # [H, n]
        for at, visible in self._blocks(q):
            scores = self._scores(q[:, at], k, visible)
            weights = torch.sub(scores, lse[:, at, None]).exp_()
            dscores = (do[:, at] @ v.transpose(1, 2)).sub_(drift[:, at, None]).mul_(weights)
            if self.rule.softcap is not None:
                slope = scores.masked_fill_(~visible, 0.0).div_(self.rule.softcap).square_().neg_().add_(1.0)
                dscores.mul_(slope)
            dscores.mul_(self.rule.scaling)
            dq[:, at] = dscores @ k
            dk += dscores.transpose(1, 2) @ q[:, at]
            dv += weights.transpose(1, 2) @ do[:, at]
        if self.sinks is not None and dsinks is not None:
            dsinks.sub_(((self.sinks.to(lse.dtype)[:, None] - lse).exp_() * drift).sum(-1))
        return dq, dk, dv


def _additive_mask(call: Call, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return 0 where seen and -inf elsewhere, [num_queries, num_keys]."""
    visible = call.visible(window, device)
    return torch.zeros(visible.shape, dtype=dtype, device=device).masked_fill_(~visible, float("-inf"))


@lru_cache(maxsize=4)
def _tree_masks(
    calls: tuple[Call, ...], window: int | None, rows: int, dtype: torch.dtype, device: torch.device
) -> tuple[tuple[Tensor, ...], ...]:
    """Return every whole-tree call's masks, one [high - low, high] per block of at most ``rows`` queries.

    One set serves every layer, forward and backward, of a batch.
    """
    masks = [None if call.groups is None else _additive_mask(call, window, dtype, device) for call in calls]
    return tuple(() if mask is None else _cut(mask, rows) for mask in masks)


def _cut(mask: Tensor, rows: int) -> tuple[Tensor, ...]:
    count = mask.shape[0]
    ends = [(low, min(low + rows, count)) for low in range(0, count, rows)]
    return tuple(mask[low:high, :high].contiguous() for low, high in ends)
