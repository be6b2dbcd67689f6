"""Log-probs of a linear head on a GPU: which mode and plan a call gets, and its place in autograd.

The forward keeps logits in registers; the backward makes them again for a chunk of rows, turns them into
the gradient by the logits in the products' dtype and multiplies it out (``fused_passes``). The README derives both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from prefopt.kernels.linear_logp import chunked
from prefopt.kernels.linear_logp.fused import milliseconds
from prefopt.kernels.linear_logp.fused_passes import BackwardPass, ForwardPass, scaled_units
from prefopt.kernels.linear_logp.gemm import product_dtype
from prefopt.kernels.linear_logp.plans import FUSED_CACHE_BYTES, MAX_STORED_SOFTCAP, LogpProblem, TilePlan
from prefopt.kernels.linear_logp.spec import HeadInputs, Spec
from prefopt.kernels.linear_logp.tuning import tuned_plan


def fused_mode(inputs: HeadInputs, stats: Sequence[str], mode: str, softcap: float | None) -> str:
    """Return the way gradients will be got, resolving ``auto``.

    Raises:
        ValueError: ``frozen`` although the head is trained or a statistic would carry a gradient;
            ``cached`` where stored exponentials do not determine the gradient.
    """
    chosen = chunked.chunked_mode(inputs, stats, mode)
    # the gradient of the mean needs every logit's softcap slope, also of those whose e^z underflows
    loses_logits = "mean_logit" in stats and softcap is not None and softcap > MAX_STORED_SOFTCAP
    if mode == "cached" and loses_logits:
        raise ValueError(
            f"token_logps: mode='cached' cannot give 'mean_logit' its gradient under softcap={softcap:g}, "
            f"which is above {MAX_STORED_SOFTCAP:g}. Use mode='auto'."
        )
    if mode != "auto" or chosen not in ("cached", "recompute"):
        return chosen
    num_rows = (inputs.hidden if inputs.rows is None else inputs.rows).shape[0]
    size = num_rows * inputs.weight.shape[0] * product_dtype(inputs.hidden, inputs.weight).itemsize
    # rounding e^z is harmless in p, but not in differences of nearly equal terms as these two have
    is_exact_enough = "entropy" not in stats and "log_sum_p2" not in stats
    return "cached" if size <= FUSED_CACHE_BYTES and is_exact_enough and not loses_logits else "recompute"


def fused_logps(inputs: HeadInputs, targets: Tensor, spec: Spec) -> tuple[Tensor, ...]:
    """Return the log-prob of every target, then the statistics in ``spec.stats``, each [M].

    Args:
        inputs: the hidden states, the head and the row index; see ``token_logps``.
        targets: int64 [M]; one outside the vocabulary makes its row NaN.
        spec: scale, softcap, the statistics to return and the resolved mode.
    """
    plan = _plan(inputs, targets, spec)
    return _score_with(inputs, targets, spec, plan)


def _score_with(inputs: HeadInputs, targets: Tensor, spec: Spec, plan: TilePlan) -> tuple[Tensor, ...]:
    if spec.mode == "no_grad":
        with torch.no_grad():
            return ForwardPass(inputs, targets, spec, plan, (False,) * 5).run()
    apply: Callable[..., tuple[Tensor, ...]] = _FusedLogps.apply
    parts = (inputs.hidden, inputs.weight, inputs.bias, inputs.x2, inputs.w2)
    return apply(*parts, inputs.rows, inputs.ignored, targets, spec, plan)


def _plan(inputs: HeadInputs, targets: Tensor, spec: Spec) -> TilePlan:
    hidden, weight = inputs.hidden, inputs.weight
    capability = torch.cuda.get_device_capability(hidden.device) if hidden.is_cuda else (9, 0)
    vocab, width = weight.shape
    problem = LogpProblem(capability, product_dtype(hidden, weight), targets.shape[0], vocab, width)

    def timed(plan: TilePlan) -> float:
        h, w = (part.detach().requires_grad_(part.requires_grad) for part in (hidden, weight))
        trial = replace(inputs, hidden=h, weight=w)
        wanted = [leaf for leaf in (h, w) if leaf.requires_grad and spec.mode != "no_grad"]

        def run() -> None:
            total = _score_with(trial, targets, spec, plan)[0].sum()
            if wanted:
                torch.autograd.grad(total, wanted)

        return milliseconds(run)

    return tuned_plan(problem, timed)


class _FusedLogps(torch.autograd.Function):
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
        plan: TilePlan,
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        inputs = HeadInputs(hidden, weight, bias, x2, w2, rows, ignored)
        forward = ForwardPass(inputs, targets, spec, plan, ctx.needs_input_grad[:5])
        values = forward.run()
        ctx.spec, ctx.plan, ctx.dtype, ctx.exps = spec, plan, forward.dtype, forward.exps
        ctx.device = targets.device.type
        if spec.mode == "frozen":
            ctx.save_for_backward(rows, *forward.units)
            ctx.like = tuple(None if part is None else (part.shape[0], part.dtype) for part in (hidden, x2))
        else:
            # the parameter itself is saved, never a cast of it: sharded training gathers it again by hooks
            kept = [forward.values.get(name) for name in ("logps", "norm", "entropy", "log_sum_p2")]
            ctx.save_for_backward(hidden, weight, bias, x2, w2, rows, ignored, targets, *kept)
        if "is_top1" in spec.stats:
            ctx.mark_non_differentiable(forward.values["is_top1"])
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        with torch.autocast(ctx.device, enabled=False):
            if ctx.spec.mode == "frozen":
                grads = scaled_units(ctx, upstream[0])
            else:
                grads = BackwardPass(ctx, upstream).run()
        return (*grads, None, None, None, None, None)
