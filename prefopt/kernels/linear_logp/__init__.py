"""Per-token log-probs of a linear head: the public op, its checks and the choice of back-end."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from prefopt.errors import RecipeError
from prefopt.kernels.linear_logp.choice import LOGP_IMPLS, LogpFunction, backend_of, mode_of, which_impl
from prefopt.kernels.linear_logp.chunked import MODES
from prefopt.kernels.linear_logp.spec import HeadInputs, Spec
from prefopt.types import STATS

__all__ = ["IGNORED", "LOGP_IMPLS", "MODES", "TokenLogps", "token_logps", "which_impl"]

IGNORED = -100
"""The target of a row that must cost nothing: its outputs and its gradient are exactly zero."""


@dataclass(frozen=True, slots=True)
class TokenLogps:
    """Log-probs of M targets in nats, and the statistics asked for; the others are None.

    All are [M], float32 (float64 for float64 inputs), and all but ``is_top1`` carry gradients.
    """

    logps: Tensor
    logsumexp: Tensor | None = None
    entropy: Tensor | None = None  # nats
    log_sum_p2: Tensor | None = None  # log of the sum of squared probabilities
    is_top1: Tensor | None = None  # 1.0 where no logit is above the target's
    mean_logit: Tensor | None = None
    impl: str = field(default="", kw_only=True)  # the back-end that made them
    mode: str = field(default="", kw_only=True)  # how gradients are got


def token_logps(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    rows: Tensor | None = None,
    lora: tuple[Tensor, Tensor] | None = None,
    stats: Collection[str] = (),
    mode: str = "auto",
    impl: str = "auto",
) -> TokenLogps:
    """Score one target per row of ``softcap(scale * (hidden @ weight.T + bias))``.

    Only what is asked for is computed, and every output can receive any upstream gradient.

    Args:
        hidden: [N, D] hidden states, any floating dtype.
        weight: [V, D] the head; may differ from ``hidden`` in dtype.
        targets: int64 [M]; -100 gives outputs and gradients of exactly zero, whatever the row holds.
        bias: [V], added before ``scale``.
        scale: multiplies the logits.
        softcap: bounds the scaled logits to (-softcap, softcap) by ``softcap * tanh(z / softcap)``.
        rows: int64 [M], the hidden row that predicts each target, repeats allowed; default: row m, M = N.
        lora: ``(x2 [N, r], w2 [V, r])``, adds ``x2 @ w2.T`` to the logits before ``scale``.
        stats: names out of ``prefopt.types.STATS``.
        mode: how gradients are got by ``chunked`` and ``fused``: ``recompute`` (logits again in the
            backward), ``cached`` (keeps one [M, V] matrix), ``frozen`` (the head is not trained:
            the hidden states' gradient is made in the forward), ``no_grad``, or ``auto``.
        impl: ``fused`` (Triton on an NVIDIA GPU, or on the CPU under TRITON_INTERPRET=1), ``chunked``
            (plain torch, any device), ``naive`` (full logits), or ``auto``: see ``which_impl``.

    Returns:
        TokenLogps: float32, or float64 when an input is float64.

    Raises:
        ValueError: shapes, dtypes or targets that do not fit together, or ``impl="fused"`` where it cannot run.
        RecipeError: an ``impl``, ``mode`` or statistic that does not exist.
    """
    x2, w2 = lora if lora is not None else (None, None)
    inputs = HeadInputs(hidden, weight, bias, x2, w2, rows)
    _check_names(stats, mode)
    _check_shapes(inputs, targets)
    impl = which_impl(hidden, weight, impl)
    wanted = tuple(name for name in STATS if name in stats)
    mode = mode_of(impl, inputs, wanted, mode, softcap)
    spec = Spec(scale=float(scale), softcap=softcap, stats=wanted, mode=mode)
    score = _score_kept if hidden.device.type == "cpu" else _score_masked
    logps, *values = score(backend_of(impl), inputs, targets, spec)
    return TokenLogps(logps, **dict(zip(wanted, values, strict=True)), impl=impl, mode=mode)


def _score_kept(
    backend: LogpFunction,
    inputs: HeadInputs,
    targets: Tensor,
    spec: Spec,
) -> tuple[Tensor, ...]:
    """Leave ignored rows out before the head and give them zeros after it."""
    kept = targets != IGNORED
    live = targets if bool(kept.all()) else targets[kept]
    if live.numel() and not 0 <= int(live.min()) <= int(live.max()) < inputs.weight.shape[0]:
        raise ValueError(
            f"token_logps: targets lie in [{int(live.min())}, {int(live.max())}] but the head has "
            f"{inputs.weight.shape[0]} rows. Use ids of this vocabulary, or {IGNORED} for rows to ignore."
        )
    if live is targets:
        return backend(inputs, targets, spec)
    at = kept.nonzero().squeeze(-1)
    rows = at if inputs.rows is None else inputs.rows.index_select(0, at)
    scored = backend(replace(inputs, rows=rows), live, spec)
    return tuple(value.new_zeros(targets.shape).index_copy(0, at, value) for value in scored)


def _score_masked(
    backend: LogpFunction,
    inputs: HeadInputs,
    targets: Tensor,
    spec: Spec,
) -> tuple[Tensor, ...]:
    """Zero ignored rows before and after the head, which needs no host copy of ``targets``."""
    ignored = targets == IGNORED
    scored = backend(replace(inputs, ignored=ignored), targets.masked_fill(ignored, 0), spec)
    return tuple(value.masked_fill(ignored, 0.0) for value in scored)


def _check_names(stats: Collection[str], mode: str) -> None:
    if mode not in MODES:
        raise RecipeError(f"token_logps: there is no mode='{mode}'. Use one of {', '.join(MODES)}.")
    for name in stats:
        if name not in STATS:
            raise RecipeError(f"token_logps: there is no statistic '{name}'. Choose from {', '.join(STATS)}.")


def _check_shapes(inputs: HeadInputs, targets: Tensor) -> None:
    hidden, weight = inputs.hidden, inputs.weight
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"token_logps: hidden {list(hidden.shape)} and weight {list(weight.shape)} do not multiply. "
            f"Give hidden [N, D] and weight [V, D]."
        )
    rows = hidden.shape[:1] if inputs.rows is None else inputs.rows.shape
    if targets.shape != rows or targets.dtype != torch.int64:
        raise ValueError(
            f"token_logps: targets is {targets.dtype} {list(targets.shape)} for {list(rows)} scored rows. "
            f"Give one int64 target per row."
        )
    vocabulary = weight.shape[:1]
    if inputs.bias is not None and inputs.bias.shape != vocabulary:
        raise ValueError(f"token_logps: bias {list(inputs.bias.shape)} does not fit {vocabulary[0]} logits.")
    if inputs.x2 is not None and inputs.w2 is not None:
        expected = (hidden.shape[0], inputs.w2.shape[-1]), (weight.shape[0], inputs.x2.shape[-1])
        if (tuple(inputs.x2.shape), tuple(inputs.w2.shape)) != expected:
            raise ValueError(
                f"token_logps: lora {list(inputs.x2.shape)}, {list(inputs.w2.shape)} does not fit. "
                f"Give x2 [N, r] and w2 [V, r]."
            )
