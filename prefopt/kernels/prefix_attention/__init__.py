"""Attention over a packed row whose segments share prefixes: the public op and its back-ends."""

from __future__ import annotations

from torch import Tensor

from prefopt.kernels.prefix_attention.backends import BACKENDS
from prefopt.kernels.prefix_attention.choice import machine_of, problem_of, resolve_backend
from prefopt.kernels.prefix_attention.spec import Rule
from prefopt.types import Segments

__all__ = ["BACKENDS", "tree_attention"]


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
        impl: ``segments`` (no T x T mask), ``dense``, ``varlen`` or ``flex`` (GPUs), or ``auto``.

    Returns:
        [1, T, Hq, dv] in the dtype of ``query``; gradients reach query, key, value and sinks.

    Raises:
        RecipeError: an ``impl`` that does not exist or cannot serve these tensors here.
        ValueError: a row of more than one batch, or segments that do not cover it.
    """
    if query.shape[0] != 1 or query.shape[2] != sum(segments.lengths):
        raise ValueError(
            f"tree_attention: query {list(query.shape)} for segments of {sum(segments.lengths)} tokens. "
            f"Give one packed row [1, H, T, d] covered by its segments."
        )
    problem = problem_of(query, key, value, segments, window=window, softcap=softcap, sinks=sinks)
    name = resolve_backend(impl, problem, machine_of(query.device)).name
    query, key, value = (part.to(problem.dtype) for part in (query, key, value))
    return BACKENDS[name].run(query, key, value, sinks, segments, Rule(scaling, window, softcap))
