"""The truth: attention over a packed row through one dense [T, T] mask, in plain autograd."""

from __future__ import annotations

import torch
from torch import Tensor

from prefopt.kernels.prefix_attention.layout import dense_mask
from prefopt.kernels.prefix_attention.spec import Backend, Rule
from prefopt.types import Segments


def dense_attention(
    query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None, segments: Segments, rule: Rule
) -> Tensor:
    """Attend along every token's path, with all T x T scores in memory."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    repeats = query.shape[1] // key.shape[1]
    keys, values = (t.to(dtype).repeat_interleave(repeats, dim=1) for t in (key, value))
    scores = query.to(dtype) @ keys.transpose(-1, -2) * rule.scaling  # [1, Hq, T, T]
    if rule.softcap is not None:
        scores = rule.softcap * torch.tanh(scores / rule.softcap)
    scores = scores.masked_fill(~dense_mask(segments, rule.window, query.device), float("-inf"))
    if sinks is not None:
        column = sinks.to(dtype)[None, :, None, None].expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, column], dim=-1)
    weights = scores.softmax(-1)[..., : keys.shape[2]]
    return (weights @ values).transpose(1, 2).to(query.dtype)


BACKEND = Backend("dense", dense_attention, footprint=None)  # its scores grow with the square of the tokens
