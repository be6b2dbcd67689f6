"""Attention over a packed row whose segments share prefixes: the public op and its back-ends."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from prefopt.errors import RecipeError
from prefopt.kernels.prefix_attention.naive import dense_attention
from prefopt.kernels.prefix_attention.segments import segment_attention
from prefopt.types import Segments

__all__ = ["ATTENTIONS", "one_dtype", "tree_attention"]

ATTENTIONS: dict[str, Callable[..., Tensor]] = {"segments": segment_attention, "dense": dense_attention}


def tree_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments,
    *,
    scaling: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """Attend causally to oneself and wholly to one's ancestors in the forest of ``segments``.

    Args:
        query: [1, Hq, T, d].
        key: [1, Hkv, T, d], Hq a multiple of Hkv.
        value: [1, Hkv, T, dv].
        segments: the forest; its segments cover all T tokens.
        scaling: multiplies the scores.
        window: a token sees at most this many tokens of its path, itself included; None: all.
        softcap: bounds the scaled scores by ``softcap * tanh(score / softcap)``.
        sinks: [Hq], logits that take part in each softmax and carry no value.
        impl: ``segments`` (no T x T mask), ``dense`` or ``auto``.

    Returns:
        [1, T, Hq, dv] in the dtype of ``query``; gradients reach query, key, value and sinks.

    Raises:
        RecipeError: an ``impl`` that does not exist.
        ValueError: a row of more than one batch, or segments that do not cover it.
    """
    chosen = "segments" if impl == "auto" else impl
    if chosen not in ATTENTIONS:
        raise RecipeError(
            f"tree_attention: there is no impl='{impl}'. Use 'auto' or one of {', '.join(ATTENTIONS)}."
        )
    if query.shape[0] != 1 or query.shape[2] != sum(segments.lengths):
        raise ValueError(
            f"tree_attention: query {list(query.shape)} for segments of {sum(segments.lengths)} tokens. "
            f"Give one packed row [1, H, T, d] covered by its segments."
        )
    query, key, value = one_dtype(query, key, value)
    return ATTENTIONS[chosen](
        query, key, value, segments, scaling=scaling, window=window, softcap=softcap, sinks=sinks
    )


def one_dtype(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Bring all three to one dtype; under autocast rotary embeddings leave queries wider than values."""
    device = query.device.type
    dtype = torch.promote_types(torch.promote_types(query.dtype, key.dtype), value.dtype)
    if torch.is_autocast_enabled(device) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
    return query.to(dtype), key.to(dtype), value.to(dtype)
