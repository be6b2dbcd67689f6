"""Log-probs of a linear head in row chunks, in plain torch on any device.

Logits exist for one chunk of rows at a time. The README beside this file derives the gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from prefopt.kernels.linear_logp.gemm import gemm_dtype, project, pull_back
from prefopt.kernels.linear_logp.gradients import HeadGradients, frozen_gradients
from prefopt.kernels.linear_logp.spec import LOG_ZERO, HeadInputs, Spec, accumulate_dtype

MODES = ("auto", "recompute", "cached", "frozen", "no_grad")

TILE_BYTES = {"cpu": 64 << 20, "cuda": 1 << 30}
"""Memory for one chunk of logits; larger chunks make larger and faster matrix products."""
CHUNKED_CACHE_BYTES = {"cpu": 256 << 20, "cuda": 2 << 30}
"""Up to this size ``auto`` keeps the [M, V] matrix instead of computing it again in the backward."""
MIN_ROWS = 256
"""Fewer rows than this per chunk and the matrix products are bound by reading the weight."""


def chunked_mode(inputs: HeadInputs, stats: Sequence[str], mode: str) -> str:
    """Return the way gradients will be got, resolving ``auto``.

    Raises:
        ValueError: ``frozen`` although the head is trained or a statistic would carry a gradient.
    """
    differentiable = [name for name in stats if name != "is_top1"]
    if mode == "frozen" and torch.is_grad_enabled() and (inputs.head_needs_grad() or differentiable):
        reason = f"stats {differentiable} carry gradients" if differentiable else "the head is trained"
        raise ValueError(f"token_logps: mode='frozen' but {reason}. Use mode='auto'.")
    if mode != "auto":
        return mode
    if not torch.is_grad_enabled() or not inputs.needs_grad():
        return "no_grad"
    if not inputs.head_needs_grad() and not differentiable:
        return "frozen"
    num_rows = (inputs.hidden if inputs.rows is None else inputs.rows).shape[0]
    size = num_rows * inputs.weight.shape[0] * accumulate_dtype(inputs.hidden, inputs.weight).itemsize
    return "cached" if size <= _budget(CHUNKED_CACHE_BYTES, inputs.hidden) else "recompute"


def chunked_logps(inputs: HeadInputs, targets: Tensor, spec: Spec) -> tuple[Tensor, ...]:
    """Return the log-prob of every target, then the statistics in ``spec.stats``, each [M].

    Args:
        inputs: the hidden states, the head and the row index; see ``token_logps``.
        targets: int64 [M], all inside the vocabulary.
        spec: scale, softcap, the statistics to return and the resolved mode.
    """
    parts = (inputs.hidden, inputs.weight, inputs.bias, inputs.x2, inputs.w2)
    if spec.mode == "no_grad":
        with torch.no_grad():
            return _Forward(inputs, targets, spec).run()
    apply: Callable[..., tuple[Tensor, ...]] = _ChunkedLogps.apply
    return apply(*parts, inputs.rows, inputs.ignored, targets, spec)


def _budget(table: dict[str, int], like: Tensor) -> int:
    return table.get(like.device.type, table["cuda"])


def _chunks(num_rows: int, vocabulary: int, like: Tensor, itemsize: int) -> list[tuple[int, int]]:
    step = max(MIN_ROWS, _budget(TILE_BYTES, like) // (vocabulary * itemsize))
    return [(low, min(low + step, num_rows)) for low in range(0, num_rows, step)]


class Logits:
    """Make the final logits of row chunks in one reused tile, or in a kept [M, V].

    Args:
        inputs: the hidden states, the head and the row index.
        spec: says how the head transforms its logits.
        num_rows: M.
        keep: keep every chunk's logits.
        dtype: in which operands are multiplied.
        tiles: how many such tiles share the memory for one chunk.
    """

    def __init__(
        self, inputs: HeadInputs, spec: Spec, num_rows: int, keep: bool, dtype: torch.dtype, tiles: int = 1
    ) -> None:
        self.inputs, self.spec, self.gemm = inputs, spec, dtype
        self.dtype = accumulate_dtype(inputs.hidden, inputs.weight)
        self.x = inputs.pick(inputs.hidden)  # [M, D]
        self.x2 = None if inputs.x2 is None else inputs.pick(inputs.x2)  # [M, r]
        self.bias = None if inputs.bias is None else inputs.bias.to(self.dtype)
        vocabulary = inputs.weight.shape[0]
        self.chunks = _chunks(num_rows, vocabulary, self.x, tiles * self.dtype.itemsize)
        tile_rows = num_rows if keep else max((high - low for low, high in self.chunks), default=0)
        self.tile = self.x.new_empty((tile_rows, vocabulary), dtype=self.dtype)
        self.keep = keep

    def chunk(self, low: int, high: int) -> Tensor:
        """Return softcap(scale * (x @ W.T + x2 @ w2.T + bias)) of rows [low, high)."""
        z = self.tile[low:high] if self.keep else self.tile[: high - low]
        project(self.x[low:high], self.inputs.weight, z, self.gemm)
        if self.x2 is not None and self.inputs.w2 is not None:
            project(self.x2[low:high], self.inputs.w2, z, self.gemm, add=True)
        if self.bias is not None:
            z.add_(self.bias)
        if self.spec.scale != 1.0:
            z.mul_(self.spec.scale)
        if self.spec.softcap is not None:
            z.div_(self.spec.softcap).tanh_().mul_(self.spec.softcap)
        return z


class _Forward:
    """Score every row, chunk by chunk, and keep what the mode's backward will read."""

    def __init__(self, inputs: HeadInputs, targets: Tensor, spec: Spec) -> None:
        self.spec, self.targets = spec, targets
        self.inputs = inputs
        self.keep = spec.mode == "cached"
        # p log p and the softcap's derivative need the logits themselves, not only probabilities
        self.keeps_logits = self.keep and ("entropy" in spec.stats or spec.softcap is not None)
        self.gemm = gemm_dtype(inputs.hidden, inputs.weight)
        self.logits = Logits(inputs, spec, targets.shape[0], self.keep, self.gemm)
        empty = self.logits.tile.new_empty
        self.values = {name: empty(targets.shape) for name in ("logps", *spec.stats)}
        self.log_sum = empty(targets.shape)  # logsumexp
        self.exp_sum = empty(targets.shape)  # sum of exp(z - max): normalises the kept tile
        self.unit: tuple[Tensor, Tensor | None] | None = None

    def run(self) -> tuple[Tensor, ...]:
        frozen: list[tuple[Tensor, Tensor | None]] = []
        with torch.autocast(self.targets.device.type, enabled=False):
            for low, high in self.logits.chunks:
                z, exps = self._score(low, high)
                if self.spec.mode == "frozen":
                    frozen.append(self._unit_gradient(low, high, z, exps))
        if self.spec.mode == "frozen":
            self.unit = self._join(frozen)
        return tuple(self.values.values())

    def _score(self, low: int, high: int) -> tuple[Tensor, Tensor]:
        z = self.logits.chunk(low, high)
        picked = z.gather(1, self.targets[low:high, None]).squeeze(1)
        top = z.amax(1)
        values = {name: value[low:high] for name, value in self.values.items()}
        if "is_top1" in values:
            values["is_top1"].copy_(picked >= top)
        if "mean_logit" in values:
            torch.mean(z, 1, out=values["mean_logit"])
        needs_logits = self.keeps_logits or "entropy" in values or self.spec.softcap is not None
        # the difference to the maximum keeps full precision where logits are large
        shifted = torch.sub(z, top[:, None]) if needs_logits else z.sub_(top[:, None])
        exps = shifted.exp() if "entropy" in values else shifted.exp_()
        exp_sum = exps.sum(1)
        log_exp_sum = exp_sum.log()
        torch.sub(picked - top, log_exp_sum, out=values["logps"])
        torch.add(top, log_exp_sum, out=self.log_sum[low:high])
        self.exp_sum[low:high] = exp_sum
        if "logsumexp" in values:
            values["logsumexp"].copy_(self.log_sum[low:high])
        if "log_sum_p2" in values:
            values["log_sum_p2"].copy_(_dot(exps, exps).log() - 2 * log_exp_sum)
        if "entropy" in values:
            expected = _dot(exps, shifted.clamp_(min=LOG_ZERO)) / exp_sum
            torch.sub(log_exp_sum, expected, out=values["entropy"])
        return z, exps

    def _unit_gradient(self, low: int, high: int, z: Tensor, exps: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return d logp / d x and d logp / d x2 of a chunk, which overwrites the tile."""
        ones = torch.ones_like(self.log_sum[low:high])
        rows = _Rows(self.targets[low:high], {"logps": ones * self.spec.scale}, {}, self.spec.softcap)
        dz = rows.from_exps(exps, self.exp_sum[low:high])
        if self.spec.softcap is not None:
            dz.mul_(softcap_slope(z, self.spec.softcap))
        dx = pull_back(dz, self.inputs.weight, self.gemm)
        return dx, None if self.inputs.w2 is None else pull_back(dz, self.inputs.w2, self.gemm)

    def _join(self, parts: list[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor | None]:
        like = self.logits.tile
        if not parts:
            return like.new_empty((0, self.inputs.hidden.shape[1])), None
        second = [part for _, part in parts if part is not None]
        return torch.cat([part for part, _ in parts]), torch.cat(second) if second else None


@dataclass(frozen=True, slots=True)
class _Rows:
    """The upstream gradients of one chunk, already multiplied by the head's scale, and its statistics."""

    targets: Tensor
    grads: dict[str, Tensor]
    stats: dict[str, Tensor]  # entropy, log_sum_p2 where their gradient is present
    softcap: float | None

    def from_exps(self, exps: Tensor, exp_sum: Tensor) -> Tensor:
        """Turn exp(z - max) into the logits' gradient, in place."""
        return self._finish(exps, self._slope(exps, None, exp_sum.reciprocal()))

    def from_logits(self, z: Tensor, log_sum: Tensor) -> Tensor:
        """Turn final logits into the gradient of the logits before the softcap, in place if it can."""
        entropy = "entropy" in self.grads
        log_p = torch.sub(z, log_sum[:, None]) if self.softcap is not None else z.sub_(log_sum[:, None])
        p = log_p.exp() if entropy else log_p.exp_()
        dz = self._finish(p, self._slope(p, log_p if entropy else None, None))
        return dz if self.softcap is None else dz.mul_(softcap_slope(z, self.softcap))

    def _slope(self, p: Tensor, log_p: Tensor | None, norm: Tensor | None) -> Tensor:
        """Return the factor of p in the gradient: [n, 1], or [n, V] where it varies over the vocabulary."""
        zero = self.targets.new_zeros(self.targets.shape, dtype=p.dtype)
        squares, entropy = self.grads.get("log_sum_p2"), self.grads.get("entropy")
        flat = self.grads.get("logsumexp", zero) - self.grads.get("logps", zero)
        if squares is not None:
            flat = flat - 2 * squares
        flat = flat if norm is None else flat * norm
        factor: Tensor | None = None
        if squares is not None:
            weight = 2 * squares * (-self.stats["log_sum_p2"]).exp()
            factor = p * (weight if norm is None else weight * norm.square())[:, None]
        if entropy is not None:
            assert log_p is not None and norm is None
            part = log_p.clamp_(min=LOG_ZERO).add_(self.stats["entropy"][:, None]).mul_(-entropy[:, None])
            factor = part if factor is None else factor.add_(part)
        return flat[:, None] if factor is None else factor.add_(flat[:, None])

    def _finish(self, p: Tensor, slope: Tensor) -> Tensor:
        dz = p.mul_(slope)
        if "logps" in self.grads:
            dz.scatter_add_(1, self.targets[:, None], self.grads["logps"][:, None])
        if "mean_logit" in self.grads:
            dz.add_(self.grads["mean_logit"][:, None] / p.shape[1])
        return dz


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the row-wise inner products of two [n, V] tiles without a third one."""
    return torch.bmm(a[:, None, :], b[:, :, None]).flatten()


def softcap_slope(z: Tensor, softcap: float) -> Tensor:
    """Turn capped logits into the derivative of the cap, 1 - (z / softcap)^2, in place."""
    return z.div_(softcap).square_().neg_().add_(1.0)


class _ChunkedLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        x2: Tensor | None,
        w2: Tensor | None,
        rows: Tensor | None,
        ignored: Tensor | None,
        targets: Tensor,
        spec: Spec,
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        inputs = HeadInputs(hidden, weight, bias, x2, w2, rows, ignored)
        state = _Forward(inputs, targets, spec)
        values = state.run()
        ctx.spec, ctx.gemm = spec, state.gemm
        ctx.kept = (state.logits.tile, state.keeps_logits) if state.keep else None
        stats = [state.values.get(name) for name in ("entropy", "log_sum_p2")]
        if spec.mode == "frozen":
            unit, unit2 = state.unit or (None, None)
            ctx.save_for_backward(rows, unit, unit2)
            ctx.like = tuple(None if part is None else (part.shape, part.dtype) for part in (hidden, x2))
        else:
            # the parameter itself is saved, never a cast of it: sharded training gathers it again by hooks
            ctx.save_for_backward(
                hidden, weight, bias, x2, w2, rows, ignored, targets, state.log_sum, state.exp_sum, *stats
            )
        if "is_top1" in spec.stats:
            ctx.mark_non_differentiable(state.values["is_top1"])
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        if ctx.spec.mode == "frozen":
            grads = frozen_gradients(ctx, upstream[0])
        else:
            grads = _Backward(ctx, upstream).run()
        return (*grads, None, None, None, None)


class _Backward:
    """Turn upstream gradients into those of the hidden states and the head, chunk by chunk."""

    def __init__(self, ctx: Any, upstream: Sequence[Tensor | None]) -> None:
        *parts, targets, log_sum, exp_sum, entropy, log_sum_p2 = ctx.saved_tensors
        self.spec, self.gemm = ctx.spec, ctx.gemm
        self.inputs, self.targets = HeadInputs(*parts), targets
        self.log_sum, self.exp_sum = log_sum, exp_sum
        self.stats = {"entropy": entropy, "log_sum_p2": log_sum_p2}
        named = zip(("logps", *self.spec.stats), upstream, strict=True)
        self.grads = {name: grad * self.spec.scale for name, grad in named if grad is not None}
        # a second backward through the same graph finds nothing kept and computes the logits again
        self.kept, ctx.kept = ctx.kept, None
        self.total = HeadGradients(self.inputs, ctx.needs_input_grad[:5], ctx.gemm)

    def run(self) -> tuple[Tensor | None, ...]:
        if not self.grads:
            return (None,) * 5
        with torch.autocast(self.targets.device.type, enabled=False):
            if self.kept is None:
                logits = Logits(self.inputs, self.spec, self.targets.shape[0], False, self.gemm)
                for low, high in logits.chunks:
                    rows = self._rows(low, high)
                    dz = rows.from_logits(logits.chunk(low, high), self.log_sum[low:high])
                    self.total.add(dz, low, high)
            else:
                self._from_kept(*self.kept)
            return self.total.gather()

    def _from_kept(self, tile: Tensor, holds_logits: bool) -> None:
        step = max(1, _budget(TILE_BYTES, tile) // max(1, tile.shape[1] * tile.element_size()))
        for low in range(0, tile.shape[0], step):
            high = min(low + step, tile.shape[0])
            rows, part = self._rows(low, high), tile[low:high]
            if holds_logits:
                dz = rows.from_logits(part, self.log_sum[low:high])
            else:
                dz = rows.from_exps(part, self.exp_sum[low:high])
            self.total.add(dz, low, high)

    def _rows(self, low: int, high: int) -> _Rows:
        grads = {name: grad[low:high] for name, grad in self.grads.items()}
        stats = {name: value[low:high] for name, value in self.stats.items() if value is not None}
        return _Rows(self.targets[low:high], grads, stats, self.spec.softcap)
