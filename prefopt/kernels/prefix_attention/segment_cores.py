"""Three ways to compute one call of ``segments``, forward and backward.

``_Fused`` hands a chain to torch's fused CPU attention, ``_Dense`` takes a whole tree under its mask in large
matrix products, ``_Explicit`` spells the softmax out and takes everything, softcaps and sinks too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from prefopt.kernels.prefix_attention.layout import Call
from prefopt.kernels.prefix_attention.spec import Rule

DENSE_ROWS = 80
"""Queries per block of a whole tree: fewer make small products, more read keys that no query may see."""
BLOCK_BYTES = 64 << 20
"""Scores held at a time by the explicit softmax over a long chain."""

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

State = tuple[Tensor, ...]
"""What a call keeps for its backward."""


def core_of(calls: tuple[Call, ...], at: int, rule: Rule, q: Tensor, v: Tensor, sinks: Tensor | None) -> Core:
    """Return what computes call ``at`` of ``calls``: the fastest that can."""
    if rule.softcap is not None or sinks is not None:
        return _Explicit(calls, at, rule, sinks)
    if calls[at].groups is not None:
        return _Dense(calls, at, rule, sinks)
    # torch's fused op needs one width for queries, keys and values
    is_fused = q.device.type == "cpu" and q.shape[2] == v.shape[2]
    return (_Fused if is_fused else _Explicit)(calls, at, rule, sinks)


class Core:
    """Attend for one call; ``forward`` returns the output [H, n, dv] and the state its backward needs."""

    def __init__(self, calls: tuple[Call, ...], at: int, rule: Rule, sinks: Tensor | None) -> None:
        self.calls, self.at, self.call = calls, at, calls[at]
        self.rule, self.sinks = rule, sinks

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, State]:
        raise NotImplementedError

    def backward(
        self, do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, state: State, dsinks: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of q, k and v; add that of the sinks to ``dsinks``."""
        raise NotImplementedError


class _Fused(Core):
    """A chain through torch's fused CPU attention; its state is the log-sum-exp of every query."""

    def _mask(self, q: Tensor) -> tuple[bool, Tensor | None]:
        if self.call.is_causal(self.rule.window):
            return True, None
        return False, _additive_mask(self.call, self.rule.window, q.dtype, q.device)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, State]:
        causal, mask = self._mask(q)
        out, lse = _flash(q[None], k[None], v[None], 0.0, causal, attn_mask=mask, scale=self.rule.scaling)
        return out[0], (lse,)

    def backward(
        self, do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, state: State, dsinks: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        causal, mask = self._mask(q)
        batch = [t[None] for t in (do, q, k, v, o)]
        grads: Sequence[Tensor] = _flash_backward(
            *batch, state[0], 0.0, causal, attn_mask=mask, scale=self.rule.scaling
        )
        return grads[0][0], grads[1][0], grads[2][0]


class _Dense(Core):
    """A whole tree under its mask; its state is the attention weights of every block of queries.

    A block ends with its last query: later tokens of the row are no ancestors of it.
    """

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, State]:
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
        self, do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, state: State, dsinks: Tensor | None
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


class _Explicit(Core):
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

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, State]:
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
        self, do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, state: State, dsinks: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        (lse,) = state
        do, q, k, v, o = (t.to(lse.dtype) for t in (do, q, k, v, o))
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        # a softmax pulls back dp as p * (dp - sum(p * dp)), and that sum is do . o, known before any block
        drift = (do * o).sum(-1)  # [H, n]
        for at, visible in self._blocks(q):
            scores = self._scores(q[:, at], k, visible)
            weights = torch.sub(scores, lse[:, at, None]).exp_()
            dscores = (do[:, at] @ v.transpose(1, 2)).sub_(drift[:, at, None]).mul_(weights)
            if self.rule.softcap is not None:
                # of c * tanh(s / c) by s: 1 - tanh^2, out of the capped scores themselves
                slope = scores.masked_fill_(~visible, 0.0).div_(self.rule.softcap).square_().neg_().add_(1.0)
                dscores.mul_(slope)
            dscores.mul_(self.rule.scaling)
            dq[:, at] = dscores @ k
            dk += dscores.transpose(1, 2) @ q[:, at]
            dv += weights.transpose(1, 2) @ do[:, at]
        if self.sinks is not None and dsinks is not None:
            # a sink has the weight e^(sink - lse) and the value 0, so its dp is 0
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
