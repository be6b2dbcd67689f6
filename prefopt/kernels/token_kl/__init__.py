"""KL divergence between two linear heads, one number per row: the public op, its checks and its back-ends."""

from __future__ import annotations

import torch
from torch import Tensor

from prefopt.errors import RecipeError
from prefopt.kernels.linear_logp.chunked import MODES
from prefopt.kernels.linear_logp.spec import HeadInputs, Spec
from prefopt.kernels.token_kl.chunked import chunked_kl, kl_mode
from prefopt.kernels.token_kl.naive import naive_kl

__all__ = ["KL_IMPLS", "token_kl"]

KL_IMPLS = ("naive", "chunked")


def token_kl(
    hidden: Tensor,
    weight: Tensor,
    reference_hidden: Tensor,
    reference_weight: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    rows: Tensor | None = None,
    lora: tuple[Tensor, Tensor] | None = None,
    reference_bias: Tensor | None = None,
    reference_scale: float = 1.0,
    reference_softcap: float | None = None,
    reference_rows: Tensor | None = None,
    reference_lora: tuple[Tensor, Tensor] | None = None,
    mode: str = "auto",
    impl: str = "auto",
) -> Tensor:
    """Return KL(reference || policy) over the whole vocabulary at every row, in nats.

    Each head is ``softcap(scale * (hidden @ weight.T + x2 @ w2.T + bias))``, as in ``token_logps``. The two
    may differ in all but their vocabulary. The reference is a constant: no gradient reaches it.

    Args:
        hidden: [N, D] hidden states of the policy, any floating dtype.
        weight: [V, D] the policy's head; may differ from ``hidden`` in dtype.
        reference_hidden: [N', D'] hidden states of the reference.
        reference_weight: [V, D'] its head.
        bias: [V], added before ``scale``.
        scale: multiplies the logits.
        softcap: bounds the scaled logits to (-softcap, softcap) by ``softcap * tanh(z / softcap)``.
        rows: int64 [M], the row of ``hidden`` at each position, repeats allowed; default: row m, M = N.
        lora: ``(x2 [N, r], w2 [V, r])``, adds ``x2 @ w2.T`` to the logits before ``scale``.
        reference_bias: as ``bias``, of the reference; so are the other four.
        reference_scale: multiplies the reference's logits.
        reference_softcap: bounds them.
        reference_rows: int64 [M].
        reference_lora: a low-rank term of the reference.
        mode: how gradients are got by ``chunked``: ``recompute`` (logits again in the backward), ``cached``
            (keeps one [M, V] matrix), ``frozen`` (the head is not trained: the hidden states' gradient is
            made in the forward), ``no_grad``, or ``auto``.
        impl: ``chunked`` (plain torch, any device), ``naive`` (full logits), or ``auto``, which is chunked.

    Returns:
        [M], float32, or float64 when an input is float64; differentiable in ``hidden``, ``weight``, ``bias``
        and ``lora`` for any upstream gradient.

    Raises:
        ValueError: shapes that do not fit together.
        RecipeError: an ``impl`` or ``mode`` that does not exist.
    """
    if impl != "auto" and impl not in KL_IMPLS:
        raise RecipeError(f"token_kl: there is no impl='{impl}'. Use 'auto' or one of {', '.join(KL_IMPLS)}.")
    if mode not in MODES:
        raise RecipeError(f"token_kl: there is no mode='{mode}'. Use one of {', '.join(MODES)}.")
    policy = _inputs("", hidden, weight, bias, lora, rows)
    reference = _inputs(
        "reference_", reference_hidden, reference_weight, reference_bias, reference_lora, reference_rows
    )
    _check_pair(policy, reference)
    mode = kl_mode(policy, mode)
    spec = Spec(scale=float(scale), softcap=softcap, stats=(), mode=mode)
    reference_spec = Spec(scale=float(reference_scale), softcap=reference_softcap, stats=(), mode="no_grad")
    if impl == "naive":
        return naive_kl(policy, spec, reference, reference_spec)
    return chunked_kl(policy, spec, reference, reference_spec)


def _inputs(
    side: str,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora: tuple[Tensor, Tensor] | None,
    rows: Tensor | None,
) -> HeadInputs:
    """Gather one head's tensors after checking that they fit together."""
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"token_kl: {side}hidden {list(hidden.shape)} and {side}weight {list(weight.shape)} do not multiply. "
            f"Give hidden [N, D] and weight [V, D]."
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"token_kl: {side}bias {list(bias.shape)} does not fit {weight.shape[0]} logits. Give [V]."
        )
    x2, w2 = lora if lora is not None else (None, None)
    if x2 is not None and w2 is not None:
        expected = (hidden.shape[0], w2.shape[-1]), (weight.shape[0], x2.shape[-1])
        if (tuple(x2.shape), tuple(w2.shape)) != expected:
            raise ValueError(
                f"token_kl: {side}lora {list(x2.shape)}, {list(w2.shape)} does not fit. Give x2 [N, r] and "
                f"w2 [V, r]."
            )
    return HeadInputs(hidden, weight, bias, x2, w2, rows)


def _check_pair(policy: HeadInputs, reference: HeadInputs) -> None:
    own, other = policy.weight.shape[0], reference.weight.shape[0]
    if own != other:
        raise ValueError(
            f"token_kl: the policy's vocabulary has {own} tokens, the reference's {other}. Give heads over one "
            f"vocabulary."
        )
    rows = [part.hidden if part.rows is None else part.rows for part in (policy, reference)]
    if rows[0].shape[0] != rows[1].shape[0]:
        raise ValueError(
            f"token_kl: {rows[0].shape[0]} rows of the policy meet {rows[1].shape[0]} of the reference. Give one "
            f"row of each per position, by rows and reference_rows."
        )
    for part in rows:
        if part.dim() == 1 and part.dtype != torch.int64:
            raise ValueError(f"token_kl: a row index is {part.dtype}. Give int64.")
