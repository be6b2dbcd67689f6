"""Which kernels and which block sizes a problem gets on a GPU: a table, read once per call, never a search.

No line of the table has been timed yet. It follows from counting: floating-point operations and bytes of
the README's section on the two forwards, and what the compiler reports for each block size (registers,
spills, shared memory). ``PREFOPT_LOGP_TUNE=FILE`` replaces the table by measurements; see ``tuning``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import torch

CHUNK_BYTES = 768 << 20
"""Memory for one chunk of the [M, V] matrix: thousands of rows or columns, so that products run at full rate."""
FUSED_CACHE_BYTES = 1 << 30
"""Up to this size ``auto`` keeps the [M, V] exponentials instead of computing logits twice."""
MAX_STORED_SOFTCAP = 43.0
"""Logits within 2 * 43 nats of one another have exponentials within the range of bfloat16 and float32."""
ROW_MULTIPLE = 128
VOCAB_MULTIPLE = 1024
COLUMN_MULTIPLE = 64
"""Stored rows start at multiples of 128 bytes: the library's products are slow on odd strides."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """Sizes of one kernel's blocks, all powers of two, and how it is laid on the chip."""

    rows: int
    vocab: int
    depth: int  # of the hidden size that one product step takes
    warps: int
    stages: int  # loads in flight, this many steps deep
    group: int = 16  # row blocks that cross the vocabulary side by side and share its tiles in the L2 cache
    per_processor: int = 1  # programs that fit on one multiprocessor together
    tma: bool = False  # load by the copy engine of Hopper and later, where rows are aligned to 16 bytes


LogitSource = Literal["fused", "tile"]
"""Logits out of a Triton product that keeps them in registers, or out of a library product into a tile."""


@dataclass(frozen=True, slots=True)
class TilePlan:
    """How one problem is computed."""

    forward: LogitSource
    backward: LogitSource
    stats: Blocks  # of the forward with logits in registers
    gradient: Blocks  # of its backward
    fold: Blocks  # of kernels that read stored logits or exponentials


@dataclass(frozen=True, slots=True)
class LogpProblem:
    """What a plan is chosen by."""

    capability: tuple[int, int]
    dtype: torch.dtype
    num_rows: int
    vocab: int
    width: int  # the hidden size

    def bucket(self) -> str:
        """Name the problem; row counts that differ by less than a factor of two share a name."""
        rows = min(max(self.num_rows - 1, 0).bit_length(), 14)
        kind = str(self.dtype).removeprefix("torch.")
        major, minor = self.capability
        return f"sm{major}{minor} {kind} rows<={1 << rows} vocab={self.vocab} width={self.width}"


_FOLD = Blocks(rows=8, vocab=1024, depth=16, warps=8, stages=1, per_processor=3)
_HOPPER_STATS = Blocks(rows=128, vocab=256, depth=64, warps=8, stages=4, tma=True)
_HOPPER_GRADIENT = replace(_HOPPER_STATS, stages=3)
_AMPERE = Blocks(rows=128, vocab=128, depth=32, warps=8, stages=4)
_SMALL_CACHE = Blocks(rows=128, vocab=128, depth=32, warps=8, stages=3)
_SINGLE = Blocks(rows=64, vocab=64, depth=32, warps=4, stages=2)

TABLE: dict[str, TilePlan] = {
    # 128 x 256 accumulators fill the registers and no inner loop spills; logits never reach memory
    "hopper half": TilePlan("fused", "fused", _HOPPER_STATS, _HOPPER_GRADIENT, _FOLD),
    "ampere half": TilePlan("fused", "fused", _AMPERE, _AMPERE, _FOLD),
    # 99 KiB of shared memory: Ampere and Ada cards for desktops, Blackwell ones too
    "desktop half": TilePlan("fused", "fused", _SMALL_CACHE, _SMALL_CACHE, _FOLD),
    # exact float32 products do not run on tensor cores, where the library's are ahead of Triton's
    "single": TilePlan("tile", "tile", _SINGLE, _SINGLE, _FOLD),
}
"""Plans by kind of chip and precision. Not yet measured."""


def plan_for(problem: LogpProblem) -> TilePlan:
    """Return the table's plan for a problem."""
    if problem.dtype == torch.float32:
        return TABLE["single"]
    major, _ = problem.capability
    if major in (9, 10):
        return TABLE["hopper half"]
    return TABLE["ampere half" if problem.capability == (8, 0) else "desktop half"]


def candidates(problem: LogpProblem) -> list[Blocks]:
    """Return the block sizes worth timing, for either direction."""
    plan = plan_for(problem)
    if not plan.stats.tma:
        return [plan.stats, replace(plan.stats, stages=plan.stats.stages - 1), replace(plan.stats, group=8)]
    wide = plan.gradient
    narrow = replace(wide, vocab=128, per_processor=2)
    return [
        wide,
        replace(wide, stages=4),
        narrow,
        replace(narrow, warps=4),
        replace(wide, rows=256, vocab=128),
        replace(wide, group=8),
        replace(wide, group=64),
        replace(wide, tma=False),
    ]


@lru_cache(maxsize=1024)
def even_splits(row_blocks: int, vocab_blocks: int, slots: int) -> tuple[int, int]:
    """Return the number of vocabulary splits and the blocks in each, so that all slots stay busy.

    Args:
        row_blocks: blocks of rows.
        vocab_blocks: blocks of the vocabulary.
        slots: programs that run at once.
    """
    best = (row_blocks * vocab_blocks + 1, 1)
    for splits in range(1, min(vocab_blocks, max(1, -(-4 * slots // row_blocks))) + 1):
        rounds = -(-row_blocks * splits // slots)
        best = min(best, (rounds * -(-vocab_blocks // splits), splits))
    each = -(-vocab_blocks // best[1])
    return -(-vocab_blocks // each), each
