"""One problem of attention, measured: every back-end is checked, then timed in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from benchmarks.attention.packs import Heads, Inputs, Repeated, draw, pack, scale_of, truth
from benchmarks.shared.ops import Limits, Pass, Shape, relative_error, time_in_turns, try_out
from prefopt.kernels import tree_attention
from prefopt.kernels.prefix_attention.backends import BACKENDS
from prefopt.kernels.prefix_attention.choice import machine_of, obstacle, problem_of
from prefopt.kernels.prefix_attention.flex import BLOCK, filled_size, mask_of
from prefopt.kernels.prefix_attention.layout import plan_calls
from prefopt.kernels.prefix_attention.varlen import gather_of
from prefopt.types import Segments

REPEATED = "repeated prompts"
NAMES = (*BACKENDS, REPEATED)
HEADS: dict[str, Heads] = {
    "small": (4, 2, 32),
    "qwen3": (16, 8, 128),  # of the 0.6B and the 1.7B
    "llama": (32, 8, 128),  # of Llama 3.1 8B
}
GATES = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""Largest norm of an error over the norm that is still right; a missing or a leaked key is off by far more."""
PACKINGS = 20


@dataclass(slots=True)
class Line:
    """What one contender did at one problem."""

    name: str
    heads: str
    shape: Shape
    tokens: int = 0  # of its row; repeated prompts count
    note: str = ""  # why there is no time
    forward_ms: list[float] = field(default_factory=list)
    backward_ms: list[float] = field(default_factory=list)
    layout_ms: float = 0.0  # what is worked out once per batch, on the host
    first_seconds: float = 0.0  # of the first call, compilation included
    graphs: int = 0  # compiled anew over PACKINGS other packings
    peak_mib: float = 0.0  # over the inputs; results included
    errors: list[float] = field(default_factory=list)  # of output, dQ, dK and dV
    repeats_bits: bool = False


def measure(
    shape: Shape,
    heads: str,
    tokens: int,
    dtype: torch.dtype,
    device: str,
    names: Sequence[str],
    limits: Limits,
) -> list[Line]:
    """Check everybody, then time those who passed in turns.

    Args:
        shape: of every pair.
        heads: a name out of ``HEADS``.
        tokens: of the row that pairs are packed into.
        dtype: of queries, keys and values.
        device: "cpu" or "cuda".
        names: who takes part, out of ``NAMES``.
        limits: of the timed turns.
    """
    segments = pack(shape, tokens)
    drawings = [draw(segments, HEADS[heads], dtype, device, seed) for seed in range(3)]
    expected = truth(drawings[0])
    lines = [Line(name, heads, shape) for name in names]
    ready = []
    for line in lines:
        line.note = _absence(line.name, drawings[0]) or _checked(line, drawings[0], expected, dtype)
        if not line.note:
            ready.append((line, partial(_on_turn, line.name, drawings)))
    del expected
    time_in_turns(ready, device, limits)
    for line, _ in ready:
        line.graphs = _compiled_anew(line.name, shape, heads, tokens, dtype, device)
    return lines


def _impl(name: str, device: str) -> str:
    if name != REPEATED:
        return name
    return "varlen" if device == "cuda" else "segments"


def _mine(name: str, inputs: Inputs) -> tuple[Inputs, Repeated | None]:
    """Return the inputs as a contender takes them."""
    if name != REPEATED:
        return inputs, None
    repeated = Repeated.of(inputs)
    return repeated.inputs, repeated


def _absence(name: str, inputs: Inputs) -> str | None:
    """Say why a contender does not take part, if it does not."""
    problem = problem_of(
        inputs.query, inputs.key, inputs.value, inputs.segments, window=None, softcap=None, sinks=None
    )
    return obstacle(_impl(name, inputs.query.device.type), problem, machine_of(inputs.query.device))


def _pass(name: str, inputs: Inputs) -> Pass:
    """Make a run on inputs as the contender takes them."""
    impl = _impl(name, inputs.query.device.type)
    query, key, value = leaves = inputs.leaves()

    def forward() -> Tensor:
        return tree_attention(query, key, value, inputs.segments, scaling=scale_of(inputs), impl=impl)

    return Pass(forward, leaves, inputs.upstream)


def _on_turn(name: str, drawings: Sequence[Inputs], turn: int) -> Pass:
    return _pass(name, _mine(name, drawings[turn % len(drawings)])[0])


def _checked(line: Line, shared: Inputs, expected: list[Tensor], dtype: torch.dtype) -> str:
    """Fill in everything but the times; return what is wrong, or nothing."""
    device = shared.query.device.type
    inputs, repeated = _mine(line.name, shared)
    line.tokens = sum(inputs.segments.lengths)
    tried = try_out(line, partial(_pass, line.name, inputs), device)
    if tried is None:
        return line.note
    found, line.first_seconds = tried
    line.layout_ms = statistics.median(_layout_ms(line.name, inputs.segments, device) for _ in range(5))
    whole = found if repeated is None else repeated.fold(found, expected)
    line.errors = [relative_error(a, b) for a, b in zip(whole, expected, strict=True)]
    for what, size in zip(("output", "dQ", "dK", "dV"), line.errors, strict=True):
        if not size <= GATES[dtype]:
            return f"wrong: {what} is off by {size:.2g} > {GATES[dtype]:g}"
    return ""


def _layout_ms(name: str, segments: Segments, device: str) -> float:
    """Return what a back-end works out once per batch, from nothing, in milliseconds of the host."""
    size = filled_size(sum(segments.lengths))
    makers: dict[str, Callable[[], object]] = {
        "varlen": lambda: gather_of(segments, None, torch.device(device)),
        "flex": lambda: mask_of(segments, None, size, BLOCK, torch.device(device)),
        "segments": lambda: plan_calls(segments, None, 0),
        "dense": lambda: None,
    }
    for cached in (gather_of, mask_of, plan_calls):
        cached.cache_clear()
    began = time.perf_counter()
    makers[_impl(name, device)]()
    return 1e3 * (time.perf_counter() - began)


def _compiled_anew(name: str, shape: Shape, heads: str, tokens: int, dtype: torch.dtype, device: str) -> int:
    """Return how many graphs are compiled over other packings of like pairs to the same budget."""
    if _impl(name, device) != "flex":
        return 0  # nothing else goes through the compiler
    numbers = np.random.default_rng(0)
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for seed in range(PACKINGS):
        inputs, _ = _mine(name, draw(pack(shape, tokens, numbers), HEADS[heads], dtype, device, seed))
        _pass(name, inputs).run()
    graphs: int = torch._dynamo.utils.counters["stats"]["unique_graphs"] - before
    return graphs
