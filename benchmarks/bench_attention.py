"""Attention over pairs that share their prompt: every back-end against repeated prompts, in turns.

    python -m benchmarks.bench_attention --device cuda
    python -m benchmarks.bench_attention --device cpu

Rows are packed to a token budget. A back-end whose output or gradients are off float64 by more than its
precision explains is reported as failed and not timed. Repeated prompts are what packing without sharing
computes: flash attention over sequences on a GPU, our segments on a CPU.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks._attention_packs import (
    Heads,
    Inputs,
    Repeated,
    Shape,
    draw,
    pack,
    scale_of,
    truth,
    visible_pairs,
)
from benchmarks._runner import (
    base_mib,
    clock,
    environment,
    failure_of,
    peak_mib,
    relative_error,
    save,
    table,
    time_in_turns,
)
from prefopt.kernels import tree_attention
from prefopt.kernels.prefix_attention.backends import BACKENDS
from prefopt.kernels.prefix_attention.choice import machine_of, obstacle, problem_of
from prefopt.kernels.prefix_attention.flash_op import active_name
from prefopt.kernels.prefix_attention.flex import BLOCK, filled_size, mask_of
from prefopt.kernels.prefix_attention.layout import plan_calls
from prefopt.kernels.prefix_attention.varlen import gather_of
from prefopt.types import Segments

REPEATED = "repeated prompts"
NAMES = (*BACKENDS, REPEATED)
SHAPES: dict[str, list[Shape]] = {
    "cpu": [(64, 32, 32), (256, 64, 64)],
    "cuda": [(128, 256, 256), (512, 256, 256), (2048, 512, 512), (8192, 512, 512)],
}
TOKENS = {"cpu": 1024, "cuda": 16384}
HEADS: dict[str, Heads] = {
    "small": (4, 2, 32),
    "qwen3": (16, 8, 128),  # of the 0.6B and the 1.7B
    "llama": (32, 8, 128),  # of Llama 3.1 8B
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
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

    @property
    def total_ms(self) -> float:
        """Return the median of forward and backward together."""
        turns = zip(self.forward_ms, self.backward_ms, strict=True)
        return statistics.median(forward + backward for forward, backward in turns)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit code."""
    given = _parser().parse_args(arguments)
    torch.set_num_threads(given.threads)
    dtype = DTYPES[given.dtype or ("float32" if given.device == "cpu" else "bfloat16")]
    names = given.only or NAMES
    tokens = given.tokens or TOKENS[given.device]
    surroundings = environment(given.device, given.threads)
    chosen = given.heads or (["small"] if given.device == "cpu" else ["qwen3", "llama"])
    problems = [(heads, shape) for heads in chosen for shape in given.shape or SHAPES[given.device]]
    record: dict[str, Any] = {
        "benchmark": "attention",
        "environment": surroundings,
        "dtype": str(dtype).removeprefix("torch."),
        "flash": active_name() if given.device == "cuda" else None,
        "heads": HEADS,
        "packings": PACKINGS,
        "lines": [],
        "left_out": [],
    }
    name, began = given.name or f"attention_{given.device}", time.monotonic()
    for heads, shape in problems:
        if time.monotonic() - began > given.within:
            record["left_out"].append(f"{shape}, {heads}")
            continue
        found = measure(shape, heads, tokens, dtype, given.device, names, (given.turns, given.seconds))
        print(_report(shape, heads, tokens, found), flush=True)
        record["lines"] += found
        save(name, record)  # after every problem, for a run may be cut short
    for problem in record["left_out"]:
        print(f"{problem}: left out, the time was up")
    print("stored in", save(name, record))
    return 0


def measure(
    shape: Shape,
    heads: str,
    tokens: int,
    dtype: torch.dtype,
    device: str,
    names: Sequence[str],
    limits: tuple[int, float],
) -> list[Line]:
    """Check everybody, then time those who passed in turns.

    ``limits`` are the timed turns of each, and the seconds after which one has had enough of them.
    """
    turns, seconds = limits
    segments = pack(shape, tokens)
    drawings = [draw(segments, HEADS[heads], dtype, device, seed) for seed in range(3)]
    expected = truth(drawings[0])
    lines = [Line(name, heads, shape) for name in names]
    ready = []
    for line in lines:
        line.note = _absence(line.name, drawings[0]) or _checked(line, drawings[0], expected, dtype)
        if not line.note:
            ready.append(line)
    del expected
    run = {line.name: partial(_timed, line.name, drawings, device) for line in ready}
    times = time_in_turns(run, turns, seconds)
    for line in ready:
        line.forward_ms, line.backward_ms = times[line.name]
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


def _forward(name: str, inputs: Inputs, leaves: Sequence[Tensor]) -> Tensor:
    impl = _impl(name, inputs.query.device.type)
    query, key, value = leaves
    return tree_attention(query, key, value, inputs.segments, scaling=scale_of(inputs), impl=impl)


def _once(name: str, inputs: Inputs) -> list[Tensor]:
    leaves = inputs.leaves()
    out = _forward(name, inputs, leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, inputs.upstream)]


def _checked(line: Line, shared: Inputs, expected: list[Tensor], dtype: torch.dtype) -> str:
    """Fill in everything but the times; return what is wrong, or nothing."""
    device = shared.query.device.type
    inputs, repeated = _mine(line.name, shared)
    line.tokens = sum(inputs.segments.lengths)
    try:
        began = time.perf_counter()
        _once(line.name, inputs)[0].sum().item()
        line.first_seconds = time.perf_counter() - began
        base = base_mib(device)
        found = _once(line.name, inputs)
        line.peak_mib = peak_mib(device) - base
        again = _once(line.name, inputs)
    except Exception as error:  # noqa: BLE001  libraries and their compilers raise errors of every kind
        return failure_of(error)
    line.layout_ms = statistics.median(_layout_ms(line.name, inputs.segments, device) for _ in range(5))
    line.repeats_bits = all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
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


def _timed(name: str, drawings: Sequence[Inputs], device: str, turn: int) -> tuple[float, float]:
    inputs, _ = _mine(name, drawings[turn % len(drawings)])
    leaves = inputs.leaves()
    kept: list[Tensor] = []
    forward = clock(lambda: kept.append(_forward(name, inputs, leaves)), device)
    return forward, clock(lambda: torch.autograd.grad(kept[0], leaves, inputs.upstream), device)


def _compiled_anew(name: str, shape: Shape, heads: str, tokens: int, dtype: torch.dtype, device: str) -> int:
    """Return how many graphs are compiled over other packings of like pairs to the same budget."""
    if _impl(name, device) != "flex":
        return 0  # nothing else goes through the compiler
    numbers = np.random.default_rng(0)
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for seed in range(PACKINGS):
        inputs, _ = _mine(name, draw(pack(shape, tokens, numbers), HEADS[heads], dtype, device, seed))
        _once(name, inputs)
    graphs: int = torch._dynamo.utils.counters["stats"]["unique_graphs"] - before
    return graphs


def _report(shape: Shape, heads: str, tokens: int, lines: Sequence[Line]) -> str:
    head = ["", "tokens", "forward ms", "backward ms", "total ms", "times repeated", "layout ms", "first s"]
    head += ["compiled anew", "peak MiB", "output error", "dQ", "dK", "dV", "same bits"]
    peer = next((line for line in lines if line.name == REPEATED and line.forward_ms), None)
    rows = []
    for line in lines:
        if line.note:
            rows.append([line.name, line.note, *[""] * (len(head) - 2)])
            continue
        forward, backward = (statistics.median(times) for times in (line.forward_ms, line.backward_ms))
        ratio = f"{peer.total_ms / line.total_ms:.2f}" if peer is not None else ""
        row = [
            line.name,
            f"{line.tokens}",
            f"{forward:.2f}",
            f"{backward:.2f}",
            f"{line.total_ms:.2f}",
            ratio,
        ]
        row += [
            f"{line.layout_ms:.2f}",
            f"{line.first_seconds:.1f}",
            f"{line.graphs}",
            f"{line.peak_mib:.0f}",
        ]
        row += [*(f"{error:.1e}" for error in line.errors), "yes" if line.repeats_bits else "no"]
        rows.append(row)
    return f"\n{_title(shape, heads, tokens)}\n{table(head, rows)}"


def _title(shape: Shape, heads: str, tokens: int) -> str:
    prompt, chosen, rejected = shape
    shared = visible_pairs(pack(shape, 0))
    apart = sum(n * (n + 1) // 2 for n in (prompt + chosen, prompt + rejected))
    return (
        f"P={prompt} C={chosen} R={rejected} packed to {tokens}, {heads} {HEADS[heads]}; repeating prompts "
        f"weighs {apart / shared:.2f} times as many pairs of tokens"
    )


def _shape(text: str) -> Shape:
    prompt, chosen, rejected = (int(part) for part in text.split(","))
    return prompt, chosen, rejected


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_attention",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--dtype", choices=DTYPES, help="default float32 on the CPU, bfloat16 on a GPU")
    parser.add_argument("--shape", nargs="+", type=_shape, metavar="P,C,R")
    parser.add_argument("--heads", nargs="+", choices=HEADS)
    parser.add_argument(
        "--tokens", type=int, help="of the packed row; default 1024 on the CPU, 16384 on a GPU"
    )
    parser.add_argument(
        "--only", nargs="+", choices=NAMES, metavar="NAME", help="take part: " + "; ".join(NAMES)
    )
    parser.add_argument("--turns", type=int, default=30, help="timed runs of each")
    parser.add_argument("--seconds", type=float, default=10.0, help="after which a contender's turns end")
    parser.add_argument(
        "--within", type=float, default=float("inf"), help="seconds after which no further problem is begun"
    )
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")
    parser.add_argument("--name", help="of the file in benchmarks/results; default attention_DEVICE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
