"""How much memory a call of ``token_logps`` takes, counted from its sizes, for plans made before any run.

Follows ``chunked`` and ``fused_passes`` allocation by allocation; numbers per row count only where they stay.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from prefopt.kernels.footprint import Footprint
from prefopt.kernels.linear_logp import chunked, plans
from prefopt.kernels.linear_logp.gemm import BLOCK_ELEMENTS

_ROW_FIELDS = 20
"""Float32 numbers per row that the fused backward lays out for its kernel."""


@dataclass(frozen=True, slots=True)
class HeadCall:
    """The sizes of one call of ``token_logps``."""

    num_rows: int  # M, scored
    num_tokens: int  # N, rows of hidden states
    vocab: int
    width: int  # D
    hidden: torch.dtype
    weight: torch.dtype
    product: torch.dtype  # what is multiplied: autocast's dtype where it is on
    trains_hidden: bool
    trains_weight: bool
    trains_rest: bool = False  # a bias or a low-rank term
    stats: tuple[str, ...] = ()
    softcap: float | None = None
    device: str = "cuda"

    def mode(self, impl: str) -> str:
        """Return how gradients will be got where ``token_logps`` is left to choose."""
        if not (self.trains_hidden or self.trains_head):
            return "no_grad"
        if not self.trains_head and not set(self.stats) - {"is_top1"}:
            return "frozen"
        if impl == "chunked":
            return (
                "cached"
                if self.logits(self.wide) <= _of(chunked.CHUNKED_CACHE_BYTES, self.device)
                else "recompute"
            )
        loses_logits = "mean_logit" in self.stats and (self.softcap or 0.0) > plans.MAX_STORED_SOFTCAP
        is_exact = not {"entropy", "log_sum_p2"} & set(self.stats) and not loses_logits
        return (
            "cached"
            if is_exact and self.logits(self.product.itemsize) <= plans.FUSED_CACHE_BYTES
            else "recompute"
        )

    def footprint(self, impl: str) -> Footprint:
        """Return what the call holds besides hidden states and weights, its gradients included.

        Args:
            impl: ``fused`` or ``chunked``.
        """
        count = _Fused if impl == "fused" else ChunkedCount
        return count(self, self.mode(impl)).footprint()

    @property
    def trains_head(self) -> bool:
        return self.trains_weight or self.trains_rest

    @property
    def wide(self) -> int:
        """Bytes of one number as it is added up."""
        return 8 if torch.float64 in (self.hidden, self.weight) else 4

    def logits(self, itemsize: int, rows: int | None = None) -> int:
        """Bytes of the logits of ``rows``, of all scored ones without."""
        return (self.num_rows if rows is None else rows) * self.vocab * itemsize

    def scored(self, itemsize: int) -> int:
        """Bytes of one vector per scored row, [M, D]."""
        return self.num_rows * self.width * itemsize

    def states(self, itemsize: int) -> int:
        """Bytes of one vector per token, [N, D]."""
        return self.num_tokens * self.width * itemsize

    def head(self, itemsize: int) -> int:
        """Bytes of a gradient of the head's weight, [V, D]; 0 where it is frozen."""
        return self.vocab * self.width * itemsize if self.trains_weight else 0


class ChunkedCount:
    """Count what ``chunked`` allocates, in plain torch.

    Args:
        call: the sizes.
        mode: how gradients are got.
        tiles: how many tiles of logits share the memory for one chunk.
    """

    def __init__(self, call: HeadCall, mode: str, tiles: int = 1) -> None:
        self.call, self.mode = call, mode
        budget = _of(chunked.TILE_BYTES, call.device)
        step = max(chunked.MIN_ROWS, budget // (call.vocab * call.wide * tiles))
        self.rows = min(step, call.num_rows)
        self.tile = call.logits(call.wide, self.rows)
        # the CPU's half-precision products round their sums, so there operands are widened
        on_cpu = call.device == "cpu"
        self.gemm = torch.promote_types(call.product, torch.float32) if on_cpu else call.product

    def footprint(self) -> Footprint:
        """Return what one call holds."""
        call, wide = self.call, self.call.wide
        # rows that are ignored are zeroed in a second copy on a GPU
        picked = call.scored(call.hidden.itemsize) * (1 if call.device == "cpu" else 2)
        tile = call.logits(wide) if self.mode == "cached" else self.tile
        units = call.scored(wide) if self.mode == "frozen" else 0
        numbers = call.num_rows * wide * (3 + len(call.stats))
        # units are made chunk by chunk and joined when the tile is still there
        forward = picked + tile + units + max(self._forward_spare(), units) + numbers
        if self.mode == "no_grad":
            return Footprint(forward, 0, 0)
        kept = units + numbers + (tile if self.mode == "cached" else 0)
        return Footprint(forward, kept, kept + self.backward(*self._backward_tiles()))

    def _forward_spare(self) -> int:
        """Logits beside the tile, or operands in another dtype; a chunk's last tile outlives the next one's start."""
        has_entropy = "entropy" in self.call.stats
        if not has_entropy and self.call.softcap is None:
            return self.widened()
        last = self.tile if self.call.num_rows > self.rows else 0
        return last + max(self.tile * (2 if has_entropy else 1), self.widened())

    def widened(self) -> int:
        """Operands in the products' dtype: a chunk of rows, and up to two blocks of the weight."""
        call, size = self.call, self.call.width * self.gemm.itemsize
        rows = 0 if call.hidden == self.gemm else self.rows * size
        if call.weight == self.gemm:
            return rows
        block = min(call.vocab, max(1, BLOCK_ELEMENTS // call.width))
        return rows + block * size * (1 if block == call.vocab else 2)

    def _backward_tiles(self) -> tuple[int, int]:
        """Return what a chunk of the backward works in, and what is left of it when all chunks are done."""
        stats = self.call.stats
        own = self.tile * ("entropy" in stats or self.call.softcap is not None)
        spare = ("entropy" in stats) + (self.call.softcap is not None) + ("log_sum_p2" in stats)
        last = own if self.call.num_rows > self.rows else 0
        fresh = self.tile if self.mode == "recompute" else 0
        loop = fresh + max(last + self.tile * spare, last + self.widened(), own + self.widened())
        return loop, fresh + own if fresh else 0

    def backward(self, loop: int, left: int) -> int:
        """Return what the backward holds at most.

        Args:
            loop: what one chunk works in.
            left: what is still there of it when the chunks' gradients are put together.
        """
        call, wide = self.call, self.call.wide
        parts = call.scored(wide)
        # summed per token in full precision, then rounded
        sums = call.states(wide) + (0 if call.hidden.itemsize == wide else call.states(call.hidden.itemsize))
        if self.mode == "frozen":
            return parts + sums
        picks = 2 if self.mode == "recompute" else 1
        held = picks * call.scored(call.hidden.itemsize) + call.head(wide) + parts
        rounded = 0 if call.weight.itemsize == wide else call.head(call.weight.itemsize)
        return held + max(loop, left + max(parts + sums, call.states(wide) + rounded))


class _Fused:
    """Count what ``fused_passes`` allocates around its Triton kernels."""

    def __init__(self, call: HeadCall, mode: str) -> None:
        self.call, self.mode, self.size = call, mode, call.product.itemsize
        # the plans of all chips make logits in the same way
        problem = plans.LogpProblem((9, 0), call.product, call.num_rows, call.vocab, call.width)
        self.plan = plans.plan_for(problem)
        self.padded = math.ceil(call.vocab / plans.COLUMN_MULTIPLE) * plans.COLUMN_MULTIPLE

    def footprint(self) -> Footprint:
        call = self.call
        rows = self._operands()
        numbers = 4 * call.num_rows * (2 + len(call.stats))
        units = call.scored(4) if self.mode == "frozen" else 0
        stored = call.num_rows * self.padded * max(self.size, 2) if self.mode == "cached" else 0
        forward = max(2 * call.scored(call.hidden.itemsize), rows + numbers + units + stored + self._chunk())
        if self.mode == "no_grad":
            return Footprint(forward, 0, 0)
        kept = numbers + units + stored
        return Footprint(forward, kept, kept + self._backward())

    def _operands(self) -> int:
        """Scored rows and the head in the products' dtype, where they are not so already."""
        call = self.call
        weight = 0 if call.weight == call.product else call.vocab * call.width * self.size
        return call.scored(self.size) + weight

    def _chunk(self) -> int:
        """Logits and their gradient for one chunk of rows, where the forward stores any."""
        each = (4 if self.plan.forward == "tile" else 0) + (self.size if self.mode == "frozen" else 0)
        rows = _chunk(self.call.num_rows, self.call.vocab * each, plans.ROW_MULTIPLE)
        return rows * self.padded * each

    def _backward(self) -> int:
        call = self.call
        out = call.states(call.hidden.itemsize)
        if self.mode == "frozen":
            return out
        each = self.size + (4 if self.plan.backward == "tile" else 0)
        width = _chunk(call.vocab, call.num_rows * each, plans.VOCAB_MULTIPLE)
        gradient = tile = 0
        if self.mode == "recompute":
            gradient, tile = call.num_rows * width * self.size, call.num_rows * width * (each - self.size)
        rows = 4 * _ROW_FIELDS * call.num_rows + self._operands() + call.scored(4)
        return rows + call.head(call.weight.itemsize) + gradient + max(tile, out)


def _chunk(size: int, item_bytes: int, multiple: int) -> int:
    """Return how many rows or columns the largest of the equal chunks within the budget has."""
    count = max(1, math.ceil(size * item_bytes / plans.CHUNK_BYTES))
    return min(size, math.ceil(math.ceil(size / count) / multiple) * multiple)


def _of(table: dict[str, int], device: str) -> int:
    return table.get(device, table["cuda"])
