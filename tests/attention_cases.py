"""Forests, tensors and a plain flash attention that the tests of prefix attention share."""

from __future__ import annotations

from itertools import accumulate, pairwise

import numpy as np
import torch
from torch import Tensor

from prefopt.kernels.prefix_attention.flash_op import Sequences
from prefopt.types import Segments


def forest(lengths: list[int], parents: list[int]) -> Segments:
    """Lay segments end to end."""
    return Segments(tuple(accumulate([0, *lengths[:-1]])), tuple(lengths), tuple(parents))


FORESTS = {
    "one_token": forest([1], [-1]),
    "prompt_alone": forest([6], [-1]),
    "pair": forest([5, 3, 4], [-1, 0, 0]),
    "one_token_answers": forest([4, 1, 1], [-1, 0, 0]),
    "one_token_prompt": forest([1, 3, 2], [-1, 0, 0]),
    "five_answers": forest([4, 1, 2, 3, 1, 2], [-1, 0, 0, 0, 0, 0]),
    "two_pairs": forest([5, 3, 4, 2, 6, 1], [-1, 0, 0, -1, 3, 3]),
    "deep_tree": forest([3, 2, 2, 1, 4, 2, 5, 1], [-1, 0, 1, 1, 0, 4, -1, 6]),
    "interleaved_trees": forest([5, 3, 4, 2, 6], [-1, 0, -1, 2, 0]),
    "unshared": forest([3, 4, 3, 2], [-1, 0, -1, 2]),
}


def random_forest(seed: int, num_segments: int, longest: int) -> Segments:
    """Draw a forest whose segments hang below any earlier one, or none."""
    numbers = np.random.default_rng(seed)
    lengths = numbers.integers(1, longest + 1, num_segments).tolist()
    return forest(
        lengths, [int(numbers.integers(-1, index)) if index else -1 for index in range(num_segments)]
    )


def draw(
    segments: Segments,
    hq: int = 4,
    hkv: int = 2,
    d: int = 8,
    dv: int = 8,
    sinks: bool = False,
    device: str = "cpu",
) -> list[Tensor]:
    """Return query, key, value and perhaps sinks, float64, laid out as transformers hands them over."""
    tokens = sum(segments.lengths)

    def leaf(heads: int, width: int) -> Tensor:
        values = torch.randn(1, tokens, heads, width, dtype=torch.float64, device=device)
        return values.transpose(1, 2).requires_grad_()

    leaves = [leaf(hq, d), leaf(hkv, d), leaf(hkv, dv)]
    if sinks:
        leaves.append(torch.randn(hq, dtype=torch.float64, device=device, requires_grad=True))
    return leaves


class PlainOp:
    """What flash attention does over sequences of different lengths, spelt out one sequence at a time."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, at: Sequences, scale: float, window: int | None
    ) -> tuple[Tensor, Tensor]:
        """Return the output [Tq, Hq, d] and the log-sum-exps [Hq, Tq]."""
        self.calls.append("forward")
        _check_layout(q, k, v)
        outs, totals = [], []
        for rows, cols in _runs(at):
            scores = _scores(q[rows], k[cols], scale, window)
            outs.append(scores.softmax(-1).to(v.dtype) @ _heads(v[cols], q))
            totals.append(scores.logsumexp(-1))
        return torch.cat(outs, dim=1).transpose(0, 1), torch.cat(totals, dim=1)

    def backward(
        self,
        dout: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        at: Sequences,
        scale: float,
        window: int | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Work from ``out`` and ``lse``, as the real op does."""
        self.calls.append("backward")
        _check_layout(dout, q, k, v, out)
        dq, dk, dv = (torch.zeros_like(part) for part in (q, k, v))
        for rows, cols in _runs(at):
            weights = (_scores(q[rows], k[cols], scale, window) - lse[:, rows, None]).exp()
            do, keys = dout[rows].transpose(0, 1).to(weights.dtype), _heads(k[cols], q).to(weights.dtype)
            drift = (do * out[rows].transpose(0, 1)).sum(-1, keepdim=True)
            dscores = weights * (do @ _heads(v[cols], q).to(weights.dtype).mT - drift) * scale
            dq[rows] = (dscores @ keys).transpose(0, 1).to(q.dtype)
            dk[cols] = _fewer(dscores.mT @ q[rows].transpose(0, 1).to(weights.dtype), k)
            dv[cols] = _fewer(weights.mT @ do, v)
        return dq, dk, dv


def _check_layout(*parts: Tensor) -> None:
    """Demand what flash attention demands: heads whose numbers lie side by side."""
    assert all(part.stride(-1) == 1 for part in parts)


def _runs(at: Sequences) -> list[tuple[slice, slice]]:
    queries, keys = at.cu_queries.tolist(), at.cu_keys.tolist()
    assert at.longest_queries == max(np.diff(queries)) and at.longest_keys == max(np.diff(keys))
    pairs = zip(pairwise(queries), pairwise(keys), strict=True)
    return [(slice(*rows), slice(*cols)) for rows, cols in pairs]


def _heads(values: Tensor, q: Tensor) -> Tensor:
    """Return [Hq, n, d] of [n, Hkv, d]."""
    return values.repeat_interleave(q.shape[1] // values.shape[1], dim=1).transpose(0, 1)


def _fewer(grads: Tensor, like: Tensor) -> Tensor:
    """Undo ``_heads`` for a gradient."""
    return grads.unflatten(0, (like.shape[1], -1)).sum(1).transpose(0, 1).to(like.dtype)


def _scores(q: Tensor, k: Tensor, scale: float, window: int | None) -> Tensor:
    dtype = torch.promote_types(q.dtype, torch.float32)
    distance = torch.arange(len(k) - len(q), len(k))[:, None] - torch.arange(len(k))
    seen = (distance >= 0) & (distance < (len(k) if window is None else window))
    scores = q.transpose(0, 1).to(dtype) @ _heads(k, q).to(dtype).mT * scale
    return scores.masked_fill(~seen, float("-inf"))
