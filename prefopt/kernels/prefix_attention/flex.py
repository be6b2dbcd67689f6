"""Attention over shared prefixes by FlexAttention, for GPUs: any tree, softcaps, sinks, single precision.

The row is filled up to one of few sizes, and what changes from batch to batch lies in tensors of that
size, so each size is compiled once.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache, lru_cache
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import flex_attention as torch_flex
from torch.nn.attention.flex_attention import BlockMask

from prefopt.kernels.footprint import Footprint
from prefopt.kernels.prefix_attention.blocks import block_kinds, token_rule
from prefopt.kernels.prefix_attention.footprint import AttentionCall
from prefopt.kernels.prefix_attention.layout import upload
from prefopt.kernels.prefix_attention.spec import HALF, AttentionProblem, Backend, Machine, Rule, gpu_obstacle
from prefopt.types import Segments

BLOCK = 128
"""Tokens of a block, of queries and of keys."""

FilledAttention = Callable[
    [Tensor, Tensor, Tensor, BlockMask, float, float | None, bool], tuple[Tensor, Tensor | None]
]
"""q, k, v, mask, scaling, softcap, wants log-sum-exps -> output [1, Hq, T, dv] and log-sum-exps [1, Hq, T]."""


def flex_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sinks: Tensor | None,
    segments: Segments,
    rule: Rule,
    *,
    attend: FilledAttention | None = None,
) -> Tensor:
    """Attend along every token's path under a mask of blocks.

    Args:
        query: [1, Hq, T, d].
        key: [1, Hkv, T, d].
        value: [1, Hkv, T, dv].
        sinks: [Hq] or None.
        segments: the forest.
        rule: scaling, window and softcap.
        attend: attends in a row that is filled up; None: ``compiled_attention``.

    Returns:
        [1, T, Hq, dv].
    """
    num_tokens = query.shape[2]
    size = filled_size(num_tokens)
    mask = mask_of(segments, rule.window, size, BLOCK, query.device)
    q, k, v = (_fill(part, size) for part in (query, key, value))
    out, lse = (compiled_attention if attend is None else attend)(
        q, k, v, mask, rule.scaling, rule.softcap, sinks is not None
    )
    if sinks is not None:
        assert lse is not None
        # a sink adds e^sink to the sum of e^score, which scales every weight alike
        out = (out * torch.sigmoid(lse - sinks.to(lse.dtype)[:, None])[..., None]).to(out.dtype)
    return out.transpose(1, 2)[:, :num_tokens]


def filled_size(num_tokens: int) -> int:
    """Return the size a row is filled up to: 128 times 1, 2, 3, 4, 6, 8, 12, 16 …, two in every octave.

    Filling costs memory and copies, but hardly time: each filler sees itself alone.
    """
    blocks = -(-num_tokens // BLOCK)
    power = 1 << max(0, (blocks - 1).bit_length())  # the next power of two
    return BLOCK * (power * 3 // 4 if power >= 4 and blocks <= power * 3 // 4 else power)


def _fill(values: Tensor, size: int) -> Tensor:
    """Return [1, H, size, d], zeros behind the row's tokens, always laid out token by token."""
    rows = values[0].transpose(0, 1)
    short = size - rows.shape[0]
    rows = F.pad(rows, (0, 0, 0, 0, 0, short)) if short else rows.contiguous()
    return rows.transpose(0, 1)[None]


def filled_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, scaling: float, softcap: float | None, wants_lse: bool
) -> tuple[Tensor, Tensor | None]:
    """Call FlexAttention; on its own it holds all scores, so it is meant to be compiled."""
    found: Any = torch_flex.flex_attention(
        q,
        k,
        v,
        score_mod=None if softcap is None else _bounded(softcap),
        block_mask=mask,
        scale=scaling,
        enable_gqa=q.shape[1] != k.shape[1],
        return_aux=torch_flex.AuxRequest(lse=True) if wants_lse else None,
    )
    return (found[0], found[1].lse) if wants_lse else (found, None)


def _bounded(softcap: float) -> Callable[..., Tensor]:
    def bounded(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return bounded


def compiled_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, scaling: float, softcap: float | None, wants_lse: bool
) -> tuple[Tensor, Tensor | None]:
    """Do what ``filled_attention`` does, compiled at the first call of each kind of problem."""
    tensors = tuple((part.shape, part.dtype, part.device, part.requires_grad) for part in (q, k, v))
    kind = (tensors, scaling, softcap, wants_lse, torch.is_grad_enabled())
    return _compiled(kind)(q, k, v, mask, scaling, softcap, wants_lse)


@cache
def _compiled(kind: tuple[object, ...]) -> FilledAttention:
    """Return a copy of ``filled_attention`` for one kind of problem.

    Torch counts compilations per code object and gives up after eight, so each kind gets its own.
    """
    name = f"attend_{_compiled.cache_info().currsize}"
    own = FunctionType(filled_attention.__code__.replace(co_name=name), filled_attention.__globals__, name)
    function: FilledAttention = torch.compile(own, dynamic=False, fullgraph=True)
    return function


@lru_cache(maxsize=8)
def mask_of(segments: Segments, window: int | None, size: int, block: int, device: torch.device) -> BlockMask:
    """Work out on the host, and copy to ``device``, the mask that every layer of a batch shares.

    Every shape follows from ``size`` alone. ``BlockMask.from_kv_blocks`` makes the transposed half on the
    device, by some thirty small operations; from the host it comes with the rest.
    """
    kinds = block_kinds(segments, window, size, block)
    numbers: dict[str, tuple[Tensor, Tensor]] = {}
    for name, blocks in (
        ("kv", kinds == 1),
        ("full_kv", kinds == 2),
        ("q", kinds.T == 1),
        ("full_q", kinds.T == 2),
    ):
        # the blocks of each row in front, in ascending order
        columns = np.argsort(~blocks, axis=1, kind="stable")
        numbers[name] = (
            upload(blocks.sum(1), device)[None, None],
            upload(columns, device)[None, None],
        )
    rule = token_rule(segments, window, size)
    tokens = [upload(part, device) for part in (rule.order, rule.last, rule.place, rule.reach)]
    return BlockMask(
        seq_lengths=(size, size),
        kv_num_blocks=numbers["kv"][0],
        kv_indices=numbers["kv"][1],
        full_kv_num_blocks=numbers["full_kv"][0],
        full_kv_indices=numbers["full_kv"][1],
        q_num_blocks=numbers["q"][0],
        q_indices=numbers["q"][1],
        full_q_num_blocks=numbers["full_q"][0],
        full_q_indices=numbers["full_q"][1],
        BLOCK_SIZE=(block, block),
        mask_mod=_inside(*tokens),
    )


def _inside(order: Tensor, last: Tensor, place: Tensor, reach: Tensor) -> Callable[..., Tensor]:
    """Return the rule inside a block, ``TokenRule.visible`` for one query and one key."""

    def inside(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        at = order[i]
        return (order[j] <= at) & (at <= last[j]) & (place[i] <= reach[j])

    return inside


def flex_obstacle(problem: AttentionProblem, machine: Machine) -> str | None:
    """Say why FlexAttention cannot serve ``problem`` on ``machine``, if so."""
    least = (8, 0) if problem.dtype == torch.bfloat16 else (7, 0)
    return gpu_obstacle(machine, least) or machine.gap("flex") or _not_for_flex(problem)


def _not_for_flex(problem: AttentionProblem) -> str | None:
    if problem.dtype not in (*HALF, torch.float32):
        given = str(problem.dtype).removeprefix("torch.")
        return f"computes in half or single precision only, not in {given}"
    narrowest = min(problem.width, problem.value_width)
    return f"needs a head size of 16 or more, not {narrowest}" if narrowest < 16 else None


def _missing() -> str | None:
    if not hasattr(torch_flex, "AuxRequest"):
        return f"needs a newer FlexAttention than that of torch {torch.__version__}"
    if importlib.util.find_spec("triton") is None:
        return "needs Triton, which is not installed"
    return None


def flex_footprint(call: AttentionCall) -> Footprint:
    """Count ``flex``: operands and their gradients exist once more, laid out token by token."""
    tokens = call.num_tokens
    kept = 4 * tokens * call.heads
    copies = (
        call.pairs(tokens, call.key_heads, call.itemsize) + tokens * call.heads * call.width * call.itemsize
    )
    return Footprint(kept + copies, kept, 2 * kept + copies)


BACKEND = Backend("flex", flex_attention, flex_footprint, obstacle=flex_obstacle, missing=_missing)
