"""How much memory attention over a packed row takes, counted from its sizes, for plans made before any run.

Queries, keys, values, the result and the gradients of the first three are the caller's; what is counted
here comes on top.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

from prefopt.kernels.footprint import Footprint
from prefopt.kernels.prefix_attention.layout import Call, plan_calls
from prefopt.kernels.prefix_attention.segments import BLOCK_BYTES, DENSE_BYTES, DENSE_ROWS, LONGEST_DENSE
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

    def footprint(self, impl: str) -> Footprint:
        """Return what one layer holds on top.

        Args:
            impl: ``segments``, ``varlen`` or ``flex``.
        """
        return _COUNTS[impl](self)

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


def _segments(call: AttentionCall) -> Footprint:
    """Count ``segments``: whole trees keep their weights, chains the log-sum-exp of every query."""
    longest = min(LONGEST_DENSE, int((2 * DENSE_BYTES // (4 * call.heads)) ** 0.5))
    counts = [_count(call, each) for each in plan_calls(call.segments, call.window, longest)]
    kept = sum(each.kept for each in counts)
    tokens, repeats = call.num_tokens, call.heads != call.key_heads
    repeated = call.pairs(tokens, call.heads, call.itemsize) if repeats else 0
    # gradients of keys and values are added up in full precision, head by head, before they become the caller's
    sums = call.pairs(tokens, call.heads, call.wide)
    given = call.pairs(tokens, call.key_heads, call.itemsize)
    joined = call.pairs(tokens, call.key_heads, call.wide) // 2 if repeats else 0
    if not repeats and call.itemsize == call.wide:
        joined -= given
    forward = max((each.forward for each in counts), default=0)
    backward = max((each.backward for each in counts), default=0)
    return Footprint(kept + repeated + forward, kept, kept + repeated + sums + max(backward - given, joined))


def _count(call: AttentionCall, each: Call) -> Footprint:
    """Count one call of ``segments``; forward and backward leave out what is kept."""
    queries, keys = each.num_queries, each.num_keys
    row = call.heads * (2 * call.width + call.value_width)  # a token's query, key and value
    if each.groups is not None and not call.is_explicit:
        ends = [min(low + DENSE_ROWS, queries) for low in range(0, queries, DENSE_ROWS)]
        scores = sum((high - low) * high for low, high in zip((0, *ends), ends, strict=False))
        block = call.heads * min(DENSE_ROWS, queries) * queries * call.wide
        operands = queries * row * call.wide if call.itemsize < call.wide else 0
        out = call.heads * queries * call.value_width * call.wide
        # the upstream gradient is widened too, and products lay some operands out anew
        backward = 2 * block + operands + (out if operands else 0) + queries * row * call.wide + 2 * out
        return Footprint(block + operands + 2 * out, scores * call.heads * call.wide, backward)
    lse = call.heads * queries * call.wide
    # distances are counted in int64 before they are compared
    mask = 0 if each.is_causal(call.window) else 10 * queries * keys
    copies = call.pairs(keys, call.heads, call.itemsize) if len(each.spans) > 1 else 0
    if call.device == "cpu" and not call.is_explicit and call.width == call.value_width:
        out = call.heads * queries * call.value_width * call.itemsize
        grads = call.heads * queries * call.width * call.itemsize + call.pairs(
            keys, call.heads, call.itemsize
        )
        return Footprint(copies + mask + out, lse, copies + mask + grads)
    block = min(BLOCK_BYTES, call.heads * queries * keys * call.wide)
    operands = keys * row * call.wide
    return Footprint(copies + operands + block, lse, copies + 2 * operands + 3 * block)


def _varlen(call: AttentionCall) -> Footprint:
    """Count ``varlen``: the keys and values of a prompt are copied for every answer but the first."""
    calls = plan_calls(call.segments, call.window, 0)
    tokens, keys = call.num_tokens, call.keys_read()
    copied = call.pairs(keys, call.key_heads, call.itemsize) if keys > tokens else 0
    kept = 4 * tokens * call.heads
    # flash attention adds up the queries' gradients in float32, with room between sequences, and makes
    # gradients of keys and values for every head of the queries before it adds them up
    rows = tokens + 128 * len(calls)
    sums = 4 * rows * call.heads * (32 * ceil(call.width / 32) + 1)
    spread = call.pairs(keys, call.heads, call.itemsize) if call.heads != call.key_heads else 0
    return Footprint(kept + copied, kept, kept + 2 * copied + sums + spread)


def _flex(call: AttentionCall) -> Footprint:
    """Count ``flex``: operands and their gradients exist once more, laid out token by token."""
    tokens = call.num_tokens
    kept = 4 * tokens * call.heads
    copies = (
        call.pairs(tokens, call.key_heads, call.itemsize) + tokens * call.heads * call.width * call.itemsize
    )
    return Footprint(kept + copies, kept, 2 * kept + copies)


_COUNTS: dict[str, Callable[[AttentionCall], Footprint]] = {
    "segments": _segments,
    "varlen": _varlen,
    "flex": _flex,
}
