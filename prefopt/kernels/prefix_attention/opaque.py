"""Packed attention as one opaque op, which a compiler puts into a graph without looking inside.

One compiled graph serves every batch, so what differs from batch to batch must be a tensor: segments
travel as a table of one size. Forward and backward are two ops. What a back-end keeps for its backward
hangs on a token that the graph hands from the one to the other, and goes when the token goes.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from prefopt.kernels.prefix_attention import tree_attention
from prefopt.kernels.prefix_attention.choice import common_dtype
from prefopt.types import Segments

_known: MutableMapping[Tensor, Segments] = WeakTensorKeyDictionary()
"""Tables met before, and the segments they say."""


def table_of(segments: Segments, size: int) -> Tensor:
    """Write segments down as int32 [3, size] on the host; columns behind the last one are zero."""
    table = torch.zeros((3, size), dtype=torch.int32)
    rows = [segments.starts, segments.lengths, segments.parents]
    table[:, : len(segments)] = torch.tensor(rows, dtype=torch.int32)
    _known[table] = segments
    return table


def segments_of(table: Tensor) -> Segments:
    """Read what ``table_of`` wrote."""
    found = _known.get(table)
    if found is None:
        rows: list[list[int]] = table[:, table[1] > 0].tolist()
        found = _known[table] = Segments(*map(tuple, rows))
    return found


def opaque_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    table: Tensor,
    *,
    scaling: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """Attend as ``tree_attention`` does, as one node of a compiled graph.

    Args:
        query: [1, Hq, T, d].
        key: [1, Hkv, T, d].
        value: [1, Hkv, T, dv].
        table: of the segments; see ``table_of``.
        scaling: as in ``tree_attention``, like all that follow.
        window: likewise.
        softcap: likewise.
        sinks: [Hq] or None.
        impl: likewise.

    Returns:
        [1, T, Hq, dv] in the dtype of ``query``.
    """
    # outside the op: autocast is over when a compiled graph runs
    dtype = common_dtype(query, key, value)
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    inputs = (query, key, value, sinks)
    keeps = torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in inputs)
    made: tuple[Tensor, Tensor] = _forward(*inputs, table, scaling, window, softcap, impl, keeps)
    return made[0]


@torch.library.custom_op(
    "prefopt::packed_attention",
    mutates_args=(),
    schema="(Tensor query, Tensor key, Tensor value, Tensor? sinks, Tensor table, float scaling, int? window, "
    "float? softcap, str impl, bool keeps) -> (Tensor, Tensor)",
)
def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sinks: Tensor | None,
    table: Tensor,
    scaling: float,
    window: int | None,
    softcap: float | None,
    impl: str,
    keeps: bool,
) -> tuple[Tensor, Tensor]:
    """Return the output and the token; with ``keeps`` the token holds the graph of the back-end."""

    def attend(q: Tensor, k: Tensor, v: Tensor, s: Tensor | None) -> Tensor:
        options: dict[str, Any] = {"scaling": scaling, "window": window, "softcap": softcap, "impl": impl}
        return tree_attention(q, k, v, segments_of(table), sinks=s, **options)

    token: Any = torch.zeros((), dtype=torch.int64)
    if not keeps:
        return attend(query, key, value, sinks).contiguous(), token
    with _autograd():
        leaves = [
            None if part is None else part.detach().requires_grad_() for part in (query, key, value, sinks)
        ]
        out = attend(*leaves)  # type: ignore[arg-type]
    token.graph = leaves, out
    return out.detach().contiguous(), token


@_forward.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    _, heads, tokens, _ = query.shape
    return query.new_empty((1, tokens, heads, value.shape[3])), torch.empty((), dtype=torch.int64)


@torch.library.custom_op(
    "prefopt::packed_attention_backward",
    mutates_args=(),
    schema="(Tensor upstream, Tensor query, Tensor key, Tensor value, Tensor? sinks, Tensor token) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
)
def _backward(
    upstream: Tensor, query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None, token: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of query, key and value, each laid out token by token, and of the sinks."""
    leaves, out = token.graph
    wanted = [leaf for leaf in leaves if leaf is not None]
    # kept only where the caller keeps its own: compiled attention refuses that once it was compiled without
    keeps = torch._C._autograd._get_current_graph_task_keep_graph()
    grads = torch.autograd.grad(out, wanted, upstream, retain_graph=keeps)
    rows = [grad.transpose(1, 2).contiguous() for grad in grads[:3]]
    return rows[0], rows[1], rows[2], query.new_empty(0) if sinks is None else grads[3].contiguous()


@_backward.register_fake
def _(
    upstream: Tensor, query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None, token: Tensor
) -> tuple[Tensor, ...]:
    rows = [part.new_empty(part.transpose(1, 2).shape) for part in (query, key, value)]
    return (*rows, query.new_empty(0) if sinks is None else sinks.new_empty(sinks.shape))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:4], output[1])


def _pull_back(ctx: Any, upstream: Tensor, _: None) -> tuple[Tensor | None, ...]:
    *rows, sinks = _backward(upstream, *ctx.saved_tensors)
    grads = (*(part.transpose(1, 2) for part in rows), sinks if ctx.saved_tensors[3] is not None else None)
    return (*grads, None, None, None, None, None, None)


_forward.register_autograd(_pull_back, setup_context=_keep)


@contextmanager
def _autograd() -> Iterator[None]:
    """Record a graph although an op is running, inside which torch records none."""
    keys = torch._C.DispatchKey
    with (
        torch._C._SetExcludeDispatchKeyGuard(keys.AutogradFunctionality, False),
        torch._C._SetExcludeDispatchKeyGuard(keys.ADInplaceOrView, False),
        torch.enable_grad(),
    ):
        yield
