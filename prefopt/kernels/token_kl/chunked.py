"""KL divergence between two heads in row chunks, in plain torch on any device.

Both heads' logits exist for one chunk of rows at a time. The README beside this file derives sums and gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from prefopt.kernels.linear_logp import chunked
from prefopt.kernels.linear_logp.chunked import Logits, softcap_slope
from prefopt.kernels.linear_logp.gemm import gemm_dtype
from prefopt.kernels.linear_logp.gradients import HeadGradients, frozen_gradients
from prefopt.kernels.linear_logp.spec import LOG_ZERO, HeadInputs, Spec, accumulate_dtype

_TILES = 4
"""[rows, V] matrices alive at once: each head's logits and exponentials."""


def kl_mode(policy: HeadInputs, mode: str) -> str:
    """Return the way gradients will be got, resolving ``auto``.

    Raises:
        ValueError: ``frozen`` although the head is trained.
    """
    try:
        return chunked.chunked_mode(policy, (), mode)
    except ValueError:
        raise ValueError("token_kl: mode='frozen' but the head is trained. Use mode='auto'.") from None


def chunked_kl(policy: HeadInputs, spec: Spec, reference: HeadInputs, reference_spec: Spec) -> Tensor:
    """Return KL(reference || policy) at every row, [M].

    Args:
        policy: the policy's hidden states, head and row index.
        spec: its scale and softcap, and the resolved mode.
        reference: the same of the reference, taken as constant.
        reference_spec: its scale and softcap.
    """
    if accumulate_dtype(policy.hidden, policy.weight, reference.hidden, reference.weight) == torch.float64:
        policy = replace(policy, hidden=policy.hidden.double())
        reference = replace(reference, hidden=reference.hidden.double())
    parts = (policy.hidden, policy.weight, policy.bias, policy.x2, policy.w2, policy.rows)
    others = (
        reference.hidden,
        reference.weight,
        reference.bias,
        reference.x2,
        reference.w2,
        reference.rows,
    )
    if spec.mode == "no_grad":
        with torch.no_grad():
            return _Sweep(HeadInputs(*parts), spec, HeadInputs(*others), reference_spec).run()
    apply: Callable[..., Tensor] = _ChunkedKl.apply
    constants = tuple(None if part is None else part.detach() for part in others)
    return apply(*parts, *constants, spec, reference_spec)


class _Sweep:
    """Cross the vocabulary of both heads, chunk of rows by chunk of rows."""

    def __init__(self, policy: HeadInputs, spec: Spec, reference: HeadInputs, reference_spec: Spec) -> None:
        self.policy, self.spec = policy, spec
        self.gemm = gemm_dtype(policy.hidden, policy.weight)
        num_rows = (policy.hidden if policy.rows is None else policy.rows).shape[0]
        self.ours = Logits(policy, spec, num_rows, False, self.gemm, tiles=_TILES)
        other_gemm = gemm_dtype(reference.hidden, reference.weight)
        self.theirs = Logits(reference, reference_spec, num_rows, False, other_gemm, tiles=_TILES)
        self.chunks = self.ours.chunks
        self.kl = self.ours.tile.new_empty(num_rows)
        self.slopes: Tensor | None = None  # [M, V], kept for the backward
        self.units: HeadGradients | None = None  # the gradient for an upstream of one, in `frozen`

    def run(self) -> Tensor:
        """Return the divergence of every row, and keep what the mode's backward will read."""
        if self.spec.mode == "cached":
            self.slopes = self.ours.tile.new_empty((len(self.kl), self.policy.weight.shape[0]))
        if self.spec.mode == "frozen":
            wanted = (True, False, False, self.policy.x2 is not None, False)
            self.units = HeadGradients(self.policy, wanted, self.gemm)
        with torch.autocast(self.kl.device.type, enabled=False):
            for low, high in self.chunks:
                slope = self.chunk(low, high, self.kl[low:high])
                if self.slopes is not None:
                    self.slopes[low:high] = slope()
                if self.units is not None:
                    self.units.add(slope(), low, high)
        return self.kl

    def chunk(self, low: int, high: int, kl: Tensor | None = None) -> Callable[[], Tensor]:
        """Write the divergence of rows [low, high) into ``kl``, if given.

        Returns:
            What turns the tiles into the derivative of each row's divergence with respect to
            ``x @ W.T + x2 @ w2.T + bias``, [n, V]; to be called once, before the next chunk.
        """
        ours, theirs = self.ours.chunk(low, high), self.theirs.chunk(low, high)
        top = ours.amax(1, keepdim=True)
        ours.sub_(top).clamp_(min=LOG_ZERO)
        theirs.sub_(theirs.amax(1, keepdim=True)).clamp_(min=LOG_ZERO)
        p, r = ours.exp(), theirs.exp()
        p_sum, r_sum = p.sum(1), r.sum(1)
        if kl is not None:
            # the differences are small where the heads agree, so little is lost in adding them up
            expected = theirs.sub_(ours).mul_(r).sum(1) / r_sum
            torch.add(expected, (p_sum / r_sum).log(), out=kl)

        def slope() -> Tensor:
            found = p.div_(p_sum[:, None]).sub_(r.div_(r_sum[:, None])).mul_(self.spec.scale)
            if self.spec.softcap is None:
                return found
            return found.mul_(softcap_slope(ours.add_(top), self.spec.softcap))

        return slope


class _ChunkedKl(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        *tensors, spec, reference_spec = arguments
        sweep = _Sweep(HeadInputs(*tensors[:6]), spec, HeadInputs(*tensors[6:]), reference_spec)
        kl = sweep.run()
        ctx.spec, ctx.reference_spec, ctx.gemm = spec, reference_spec, sweep.gemm
        ctx.slopes, ctx.chunks = sweep.slopes, sweep.chunks
        if sweep.units is None:
            # the parameter itself is saved, never a cast of it: sharded training gathers it again by hooks
            ctx.save_for_backward(*tensors)
        else:
            hidden, _, _, x2, _, rows = tensors[:6]
            units = [torch.cat(parts) if parts else None for parts in (sweep.units.dx, sweep.units.dx2)]
            ctx.save_for_backward(rows, *units)
            ctx.like = tuple(None if part is None else (part.shape, part.dtype) for part in (hidden, x2))
        return kl

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        nothing = (None,) * 9  # rows, the reference's six tensors and both specs
        if ctx.spec.mode == "frozen":
            return *frozen_gradients(ctx, upstream), *nothing
        tensors = ctx.saved_tensors
        policy = HeadInputs(*tensors[:6])
        total = HeadGradients(policy, ctx.needs_input_grad[:5], ctx.gemm)
        slopes = ctx.slopes
        with torch.autocast(upstream.device.type, enabled=False):
            if slopes is None:
                sweep = _Sweep(policy, ctx.spec, HeadInputs(*tensors[6:]), ctx.reference_spec)
            for low, high in ctx.chunks:
                part = sweep.chunk(low, high)() if slopes is None else slopes[low:high]
                total.add(part * upstream[low:high, None], low, high)
            return *total.gather(), *nothing
