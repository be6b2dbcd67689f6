"""The forward and the backward of the fused log-probs: in which chunks, and what is kept between the two.

With room for 1,200 rows of logits, 3,000 rows are scored as 0-1024, 1024-2048 and 2048-3000, each over the whole
vocabulary: three equal parts, rounded up to a multiple of 128. The backward cuts the vocabulary instead: with
room for 64,000 columns, 150,000 tokens are 0-50176, 50176-100352 and 100352-150000, each for all rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from prefopt.kernels.linear_logp.gemm import multiply, product_dtype, project
from prefopt.kernels.linear_logp.launch import Exps, Head, collect, differentiate, row_values, score_rows
from prefopt.kernels.linear_logp.plans import (
    CHUNK_BYTES,
    COLUMN_MULTIPLE,
    ROW_MULTIPLE,
    VOCAB_MULTIPLE,
    TilePlan,
)
from prefopt.kernels.linear_logp.spec import HeadInputs, Spec


def _chunks(size: int, item_bytes: int, multiple: int) -> list[tuple[int, int]]:
    """Split rows or columns into equal chunks within the budget; the last may be shorter."""
    if size == 0:
        return []
    count = max(1, math.ceil(size * item_bytes / CHUNK_BYTES))
    step = math.ceil(math.ceil(size / count) / multiple) * multiple
    return [(low, min(low + step, size)) for low in range(0, size, step)]


def _matrix(like: Tensor, num_rows: int, vocab: int, dtype: torch.dtype) -> Tensor:
    """Return memory for [num_rows, vocab] with aligned rows."""
    stride = math.ceil(vocab / COLUMN_MULTIPLE) * COLUMN_MULTIPLE
    return like.new_empty((num_rows, stride), dtype=dtype)[:, :vocab]


def _stored_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of stored exponentials: 2^-30 must not vanish, as it would in float16."""
    return torch.bfloat16 if dtype == torch.float16 else dtype


def _head(inputs: HeadInputs, spec: Spec, dtype: torch.dtype) -> Head:
    x, *rest = (None if part is None else inputs.pick(part).to(dtype) for part in (inputs.hidden, inputs.x2))
    assert x is not None
    (x2,) = (None if part is None else part.contiguous() for part in rest)
    w2 = None if inputs.w2 is None else inputs.w2.to(dtype)
    return Head(x.contiguous(), inputs.weight.to(dtype), inputs.bias, x2, w2, spec.scale, spec.softcap)


def _products(head: Head, out: Tensor, dtype: torch.dtype) -> Tensor:
    """Fill ``out`` with the raw products, made by the library."""
    project(head.x, head.w, out, dtype)
    if head.x2 is not None and head.w2 is not None:
        project(head.x2, head.w2, out, dtype, add=True)
    return out


class ForwardPass:
    """Score every row, and keep or make what the mode's backward will read."""

    def __init__(
        self, inputs: HeadInputs, targets: Tensor, spec: Spec, plan: TilePlan, wanted: Sequence[bool]
    ) -> None:
        self.spec, self.plan, self.targets, self.wanted = spec, plan, targets, wanted
        self.inputs, self.dtype = inputs, product_dtype(inputs.hidden, inputs.weight)
        self.values = {
            name: targets.new_empty(targets.shape, dtype=torch.float32)
            for name in ("logps", *spec.stats, "norm")
        }
        self.exps: Exps | None = None
        self.units: list[Tensor | None] = [None, None]  # d logp / d x and d logp / d x2, float32

    def run(self) -> tuple[Tensor, ...]:
        num_rows, vocab = self.targets.shape[0], self.inputs.weight.shape[0]
        is_frozen, is_tiled = self.spec.mode == "frozen", self.plan.forward == "tile"
        with torch.autocast(self.targets.device.type, enabled=False):
            self.head = _head(self.inputs, self.spec, self.dtype)
            if self.spec.mode == "cached" and num_rows:
                self.exps = self._exps(num_rows, vocab)
            row_bytes = vocab * ((4 if is_tiled else 0) + (self.dtype.itemsize if is_frozen else 0))
            chunks = _chunks(num_rows, row_bytes, ROW_MULTIPLE)
            rows = chunks[0][1] if chunks else 0
            whole = _matrix(self.head.x, rows, vocab, torch.float32) if is_tiled else None
            unit = _Unit(self, chunks) if is_frozen else None
            for low, high in chunks:
                head = self.head.rows(low, high)
                tile = None if whole is None else _products(head, whole[: high - low], self.dtype)
                exps = None if self.exps is None else self.exps.rows(low, high)
                if unit is not None and tile is None:
                    exps = unit.exps(high - low)
                blocks = self.plan.stats if tile is None else self.plan.fold
                values = {name: value[low:high] for name, value in self.values.items()}
                score_rows(head, self.targets[low:high], values, blocks, tile, exps)
                source = tile if exps is None else exps
                if unit is not None and source is not None:
                    unit.make(low, high, source)
        return tuple(self.values[name] for name in ("logps", *self.spec.stats))

    def _exps(self, num_rows: int, vocab: int) -> Exps:
        block = (self.plan.fold if self.plan.forward == "tile" else self.plan.stats).vocab
        values = _matrix(self.head.x, num_rows, vocab, _stored_dtype(self.dtype))
        keys = self.targets.new_empty((math.ceil(vocab / block), num_rows), dtype=torch.float32)
        return Exps(values, keys, block)


class _Unit:
    """Make the gradient of each log-prob by its hidden row, so that the backward only has to scale it."""

    def __init__(self, forward: ForwardPass, chunks: list[tuple[int, int]]) -> None:
        self.forward = forward
        rows = max((high - low for low, high in chunks), default=0)
        head, vocab = forward.head, forward.head.w.shape[0]
        self.dz = _matrix(head.x, rows, vocab, head.x.dtype)
        block = forward.plan.stats.vocab
        keys = forward.targets.new_empty((math.ceil(vocab / block), rows), dtype=torch.float32)
        # exponentials become the gradient in place
        self.stored = Exps(self.dz.view(_stored_dtype(head.x.dtype)), keys, block)
        num_rows = forward.targets.shape[0]
        for at, part in enumerate((head.x, head.x2)):
            if part is not None and forward.wanted[3 * at]:
                forward.units[at] = part.new_empty((num_rows, part.shape[1]), dtype=torch.float32)

    def exps(self, rows: int) -> Exps:
        return self.stored.rows(0, rows)

    def make(self, low: int, high: int, source: Tensor | Exps) -> None:
        forward, dz = self.forward, self.dz[: high - low]
        logps, norm = (forward.values[name][low:high] for name in ("logps", "norm"))
        grads = {"logps": torch.full_like(logps, forward.spec.scale)}
        rows = row_values(grads, logps, norm, {}, dz.shape[1])
        targets = forward.targets[low:high]
        blocks = forward.plan.fold
        differentiate(forward.head.rows(low, high), targets, rows, frozenset(grads), dz, blocks, source)
        for unit, w in zip(forward.units, (forward.head.w, forward.head.w2), strict=True):
            if unit is not None and w is not None:
                multiply(dz, w, forward.dtype, out=unit[low:high])


def scaled_units(ctx: Any, upstream: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return the gradients of hidden, weight, bias, x2 and w2 from the unit gradients that the forward made."""
    rows, *units = ctx.saved_tensors
    found: list[Tensor | None] = []
    for unit, like in zip(units, ctx.like, strict=True):
        if upstream is None or unit is None or like is None:
            found.append(None)
        else:
            found.append(_gathered(unit, upstream.contiguous(), rows, *like))
    return found[0], None, None, found[1], None


def _gathered(
    values: Tensor, factors: Tensor | None, rows: Tensor | None, num_rows: int, dtype: torch.dtype
) -> Tensor:
    """Return the gradient of the hidden rows from that of the scored rows."""
    if rows is not None:
        return collect(values, factors, rows, num_rows, dtype)
    return (values if factors is None else values * factors[:, None]).to(dtype)


class BackwardPass:
    """Turn upstream gradients into those of the hidden states and the head, a part of the vocabulary at a time.

    Parts of the vocabulary, not of the rows: each entry of the weight's large gradient is then written once,
    and only the small one of the hidden states is added up.
    """

    def __init__(self, ctx: Any, upstream: Sequence[Tensor | None]) -> None:
        *parts, targets, logps, norm, entropy, log_sum_p2 = ctx.saved_tensors
        self.inputs, self.targets, self.spec, self.plan = HeadInputs(*parts), targets, ctx.spec, ctx.plan
        self.dtype, self.wanted = ctx.dtype, ctx.needs_input_grad[:5]
        named = zip(("logps", *self.spec.stats), upstream, strict=True)
        grads = {name: grad.float() * self.spec.scale for name, grad in named if grad is not None}
        self.terms = frozenset(grads)
        # float16 cannot hold the gradients of a mean over many tokens
        is_narrow = self.dtype == torch.float16 and targets.shape[0] > 0
        self.unit = _power_of_two(grads) if grads and is_narrow else None
        if self.unit is not None:
            grads = {name: grad / self.unit for name, grad in grads.items()}
        stats = {"entropy": entropy, "log_sum_p2": log_sum_p2}
        known = {name: value for name, value in stats.items() if value is not None}
        self.row_values = row_values(grads, logps, norm, known, self.inputs.weight.shape[0])
        # a second backward through the same graph finds nothing kept and computes the logits again
        self.exps, ctx.exps = ctx.exps, None

    def run(self) -> tuple[Tensor | None, ...]:
        if not self.terms:
            return (None,) * 5
        self.head, inputs = _head(self.inputs, self.spec, self.dtype), self.inputs
        pairs = zip(
            self.wanted, (inputs.hidden, inputs.weight, inputs.bias, inputs.x2, inputs.w2), strict=True
        )
        found = [self._memory(part) if wanted and part is not None else None for wanted, part in pairs]
        found[0], found[3] = self._sums(found[0], self.head.x), self._sums(found[3], self.head.x2)
        if self.targets.shape[0]:
            for low, high, dz in self._gradients():
                self._spread(low, high, dz, found)
        hidden, weight, bias, x2, w2 = found
        return self._rows(hidden, inputs.hidden), weight, bias, self._rows(x2, inputs.x2), w2

    def _memory(self, like: Tensor) -> Tensor:
        # zeros, not None, where there are no rows: data-parallel engines wait for every trained weight
        is_empty = self.targets.shape[0] == 0
        return (
            torch.zeros_like(like)
            if is_empty
            else torch.empty_like(like, memory_format=torch.contiguous_format)
        )

    def _sums(self, wanted: Tensor | None, like: Tensor | None) -> Tensor | None:
        return None if wanted is None or like is None else like.new_zeros(like.shape, dtype=torch.float32)

    def _gradients(self) -> Iterator[tuple[int, int, Tensor]]:
        """Yield the gradient by the raw products, all rows of a part of the vocabulary at a time."""
        num_rows, vocab = self.targets.shape[0], self.inputs.weight.shape[0]
        if self.exps is not None:
            dz = self.exps.values.view(self.dtype)
            differentiate(self.head, self.targets, self.row_values, self.terms, dz, self.plan.fold, self.exps)
            yield 0, vocab, dz
            return
        is_tiled = self.plan.backward == "tile"
        chunks = _chunks(vocab, num_rows * (self.dtype.itemsize + (4 if is_tiled else 0)), VOCAB_MULTIPLE)
        width = chunks[0][1]
        whole = _matrix(self.head.x, num_rows, width, self.dtype)
        tile = _matrix(self.head.x, num_rows, width, torch.float32) if is_tiled else None
        blocks = self.plan.fold if is_tiled else self.plan.gradient
        for low, high in chunks:
            head, dz = self.head.columns(low, high), whole[:, : high - low]
            source = None if tile is None else _products(head, tile[:, : high - low], self.dtype)
            differentiate(head, self.targets - low, self.row_values, self.terms, dz, blocks, source)
            yield low, high, dz

    def _spread(self, low: int, high: int, dz: Tensor, found: Sequence[Tensor | None]) -> None:
        """Write or add what a part of the vocabulary gives to every gradient that is wanted."""
        head = self.head.columns(low, high)
        hidden, weight, bias, x2, w2 = found
        for total, w in ((hidden, head.w), (x2, head.w2)):
            if total is not None and w is not None:
                multiply(dz, w, self.dtype, out=total, add=low > 0)
        for part, x in ((weight, head.x), (w2, head.x2)):
            if part is not None and x is not None:
                self._write(part[low:high], dz, x)
        if bias is not None:
            total = dz.sum(0, dtype=torch.float32)
            bias[low:high] = total if self.unit is None else total * self.unit

    def _write(self, part: Tensor, dz: Tensor, x: Tensor) -> None:
        """Write dz.T @ x, rounded once."""
        if part.dtype == self.dtype == torch.bfloat16 and part.is_cuda:
            torch.mm(dz.T, x, out=part)
        elif part.dtype == torch.float32 and self.unit is None:
            multiply(dz.T, x, self.dtype, out=part)
        else:
            product = multiply(dz.T, x, self.dtype)
            part.copy_(product if self.unit is None else product.mul_(self.unit))

    def _rows(self, total: Tensor | None, like: Tensor | None) -> Tensor | None:
        if total is None or like is None:
            return None
        factors = None if self.unit is None else self.unit.expand(total.shape[0]).contiguous()
        return _gathered(total, factors, self.inputs.rows, like.shape[0], like.dtype)


def _power_of_two(grads: dict[str, Tensor]) -> Tensor:
    """Return a power of two near the largest upstream gradient, 1 where all are zero: float32 scalar."""
    largest = torch.stack([grad.abs().amax() for grad in grads.values()]).amax()
    return torch.where(largest > 0, torch.exp2(torch.log2(largest).round()), torch.ones_like(largest))
