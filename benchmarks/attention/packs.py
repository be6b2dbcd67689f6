"""Packed rows for the benchmark of attention, the float64 truth, and the same rows with prompts repeated."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from benchmarks.shared.ops import Shape
from prefopt.kernels.prefix_attention.dense import dense_attention
from prefopt.kernels.prefix_attention.spec import Rule
from prefopt.types import Segments

Heads = tuple[int, int, int]
"""Query heads, key heads, head size."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """One drawing of a problem, laid out as a model hands it over: [1, H, T, d] over [1, T, H, d]."""

    segments: Segments
    query: Tensor
    key: Tensor
    value: Tensor
    upstream: Tensor  # [1, T, Hq, d]

    def leaves(self) -> list[Tensor]:
        """Return query, key and value, ready for gradients."""
        return [part.detach().requires_grad_() for part in (self.query, self.key, self.value)]


def pack(shape: Shape, tokens: int, numbers: np.random.Generator | None = None) -> Segments:
    """Fill a row of ``tokens`` with pairs that share their prompts.

    Args:
        shape: of every pair.
        tokens: as many pairs as fit, one at least.
        numbers: draws lengths between a half and one and a half times those of ``shape``.
    """
    lengths: list[int] = []
    while True:
        pair = list(shape) if numbers is None else [int(n * numbers.uniform(0.5, 1.5)) + 1 for n in shape]
        if lengths and sum(lengths) + sum(pair) > tokens:
            break
        lengths += pair
    parents = [
        at if at < 0 else 3 * (index // 3) for index, at in enumerate([-1, 0, 0] * (len(lengths) // 3))
    ]
    return Segments(tuple(accumulate([0, *lengths[:-1]])), tuple(lengths), tuple(parents))


def draw(segments: Segments, heads: Heads, dtype: torch.dtype, device: str, seed: int) -> Inputs:
    """Draw normal numbers; scores then have a standard deviation of 1, as after training."""
    queries, keys, width = heads
    generator = torch.Generator(device).manual_seed(seed)
    normal = partial(torch.randn, generator=generator, device=device)
    tokens = sum(segments.lengths)
    query, key, value = (
        normal(1, tokens, count, width).to(dtype).transpose(1, 2) for count in (queries, keys, keys)
    )
    return Inputs(segments, query, key, value, normal(1, tokens, queries, width).to(dtype))


def truth(inputs: Inputs) -> list[Tensor]:
    """Return output and gradients of query, key and value in float64, one pair and one key head at a time."""
    leaves = [part.double() for part in inputs.leaves()]
    out = torch.empty_like(inputs.upstream, dtype=torch.float64)
    grads = [torch.empty_like(leaf) for leaf in leaves]
    group = inputs.query.shape[1] // inputs.key.shape[1]
    rule = Rule(scale_of(inputs))
    for first in range(0, len(inputs.segments), 3):
        lengths = inputs.segments.lengths[first : first + 3]
        rows = slice(inputs.segments.starts[first], inputs.segments.starts[first] + sum(lengths))
        tree = Segments(tuple(accumulate([0, *lengths[:-1]])), lengths, (-1, 0, 0))
        for head in range(inputs.key.shape[1]):
            heads = (slice(group * head, group * (head + 1)), *[slice(head, head + 1)] * 2)
            query, key, value = parts = [
                leaf[:, at, rows].detach().requires_grad_() for leaf, at in zip(leaves, heads, strict=True)
            ]
            found = dense_attention(query, key, value, None, tree, rule)
            found_grads = torch.autograd.grad(found, parts, inputs.upstream[:, rows, heads[0]].double())
            out[:, rows, heads[0]] = found.detach()
            for grad, at, part in zip(grads, heads, found_grads, strict=True):
                grad[:, at, rows] = part
    return [out, *grads]


def scale_of(inputs: Inputs) -> float:
    """Return what scores are multiplied by."""
    scale: float = inputs.query.shape[-1] ** -0.5
    return scale


@dataclass(frozen=True, slots=True)
class Repeated:
    """The same pairs with the prompt before each answer, as packing without sharing lays them out."""

    inputs: Inputs
    rows: Tensor  # int64 [2 P + C + R ...], the shared row behind each

    @classmethod
    def of(cls, shared: Inputs) -> Repeated:
        """Repeat every prompt; the upstream gradient of its second copy is zero, so gradients still agree."""
        starts, lengths = shared.segments.starts, shared.segments.lengths
        runs, sequences, once = [], [], []
        for first in range(0, len(shared.segments), 3):
            for answer in (first + 1, first + 2):
                for node in (first, answer):
                    runs.append(torch.arange(starts[node], starts[node] + lengths[node]))
                    once.append(torch.full((lengths[node],), float(node != first or answer == first + 1)))
                sequences.append(lengths[first] + lengths[answer])
        rows = torch.cat(runs).to(shared.query.device)
        segments = Segments(tuple(accumulate([0, *sequences[:-1]])), tuple(sequences), (-1,) * len(sequences))
        query, key, value = (
            part.transpose(1, 2)[:, rows].transpose(1, 2) for part in (shared.query, shared.key, shared.value)
        )
        keep = torch.cat(once).to(shared.upstream)[None, :, None, None]
        return cls(Inputs(segments, query, key, value, shared.upstream[:, rows] * keep), rows)

    def fold(self, found: list[Tensor], like: list[Tensor]) -> list[Tensor]:
        """Bring output and gradients back to the shared rows, in the shapes of ``like``."""
        out = torch.empty_like(like[0])
        out[:, self.rows] = found[0].double()
        folded = [
            torch.zeros_like(whole).index_add_(2, self.rows, grad.double())
            for grad, whole in zip(found[1:], like[1:], strict=True)
        ]
        return [out, *folded]


def visible_pairs(segments: Segments) -> int:
    """Return how many pairs of query and key are not masked."""
    total = 0
    for index, length in enumerate(segments.lengths):
        before = sum(segments.lengths[node] for node in segments.ancestors(index))
        total += before * length + length * (length + 1) // 2
    return total
