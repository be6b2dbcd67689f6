"""The sizes of one call of ``tree_attention``, from which each back-end counts the memory it takes.

Queries, keys, values, the result and the gradients of the first three are the caller's; what a back-end
counts comes on top.
"""

from __future__ import annotations

from dataclasses import dataclass

from prefopt.kernels.prefix_attention.layout import plan_calls
from prefopt.types import Segments


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """The sizes of one call of ``tree_attention``."""

    segments: Segments
    heads: int
    key_heads: int
    width: int  # of a query and a key
    value_width: int
    itemsize: int  # bytes of one number
    window: int | None = None
    is_explicit: bool = False  # a softcap or sinks, which the fused ops cannot do
    device: str = "cuda"

    @property
    def gathered(self) -> float:
        """Keys that ``varlen`` reads for each token of the row, its copies of prompts included."""
        return self.keys_read() / max(1, self.num_tokens)

    def keys_read(self) -> int:
        """Return how many keys all sequences of ``varlen`` read together."""
        return sum(call.num_keys for call in plan_calls(self.segments, self.window, 0))

    @property
    def num_tokens(self) -> int:
        return sum(self.segments.lengths)

    @property
    def wide(self) -> int:
        """Bytes of a number in full precision."""
        return max(4, self.itemsize)

    def pairs(self, tokens: int, heads: int, itemsize: int) -> int:
        """Bytes of keys and values."""
        return tokens * heads * (self.width + self.value_width) * itemsize
