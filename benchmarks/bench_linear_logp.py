"""Head log-probs with any upstream gradient: time, share of the products' floor, memory, error; in turns.

    python -m benchmarks.bench_linear_logp --device cuda
    python -m benchmarks.bench_linear_logp --device cpu

Everybody gets the same tensors. An op whose log-probs or gradients are off float64 by more than its
precision explains is reported as failed and not timed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks._logp_plot import plot
from benchmarks._logp_providers import PROVIDERS, TASKS, Inputs, Provider, draw, truth
from benchmarks._runner import (
    RESULTS,
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

Shape = tuple[int, int, int]
SHAPES: dict[str, list[Shape]] = {
    "cpu": [(2048, 256, 32000), (2048, 512, 32000), (2048, 1024, 32000)],
    "cuda": [
        (rows, width, vocab)
        for rows in (2048, 8192, 512)
        for width, vocab in ((1024, 151936), (2048, 151936), (4096, 128256))
    ],
}
"""Rows, hidden size, vocabulary: Qwen3 0.6B and 1.7B and Llama 3.1 8B on the GPU; the most telling first."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
GATES = {torch.float32: (1e-3, 1e-3), torch.bfloat16: (0.15, 3e-2)}
"""Largest error of a log-prob in nats, and of a gradient relative to its norm, that is still right.

Logits rounded to bfloat16 are off by 0.06 at a size of 16; a wrong term would be off by far more.
"""
SQUARE = {"cpu": 1024, "cuda": 8192}
"""Size of the square product whose rate counts as well; long thin ones run below it on a CPU."""


@dataclass(slots=True)
class Line:
    """What one contender did at one problem."""

    provider: str
    task: str
    shape: Shape
    note: str = ""  # why there is no time
    forward_ms: list[float] = field(default_factory=list)
    backward_ms: list[float] = field(default_factory=list)
    peak_mib: float = 0.0  # over the inputs; results included
    logp_error: float = 0.0  # nats, largest
    hidden_error: float = 0.0  # norm of the error over the norm
    weight_error: float = 0.0
    repeats_bits: bool = False
    tflops: float = 0.0
    share: float = 0.0  # of the floor of TASKS at the products' measured rate

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
    providers = [PROVIDERS[name] for name in given.only or PROVIDERS]
    problems = [
        (shape, task) for shape in given.shape or SHAPES[given.device] for task in given.task or TASKS
    ]
    record: dict[str, Any] = {
        "benchmark": "linear_logp",
        "environment": environment(given.device, given.threads),
        "dtype": str(dtype).removeprefix("torch."),
        "products": TASKS,
        "product_tflops": {},
        "lines": [],
        "left_out": [],
    }
    rates, lines = record["product_tflops"], record["lines"]
    name, began = given.name or f"linear_logp_{given.device}", time.monotonic()
    for shape, task in problems:
        if time.monotonic() - began > given.within:
            record["left_out"].append(f"{_title(shape)}, {task}")
            continue
        if _title(shape) not in rates:
            rates[_title(shape)] = product_rate(shape, dtype, given.device)
        rate = rates[_title(shape)]
        found = measure(shape, task, dtype, given.device, providers, (given.turns, given.seconds), rate)
        print(_report(shape, task, rate, found), flush=True)
        lines += found
        save(name, record)  # after every problem, for a run may be cut short
    for problem in record["left_out"]:
        print(f"{problem}: left out, the time was up")
    print("stored in", save(name, record), "and", plot(lines, RESULTS / f"{name}.png"))
    return 0


def measure(
    shape: Shape,
    task: str,
    dtype: torch.dtype,
    device: str,
    providers: Sequence[Provider],
    limits: tuple[int, float],
    rate: float,
) -> list[Line]:
    """Check everybody, then time those who passed in turns; the order rotates.

    ``limits`` are the timed turns of each, and the seconds after which one has had enough of them.
    """
    torch.compiler.reset()  # it compiles a function for a few shapes only, then falls back to eager
    turns, seconds = limits
    first = draw(shape, dtype, device, 0, None)
    drawings = [first, *(draw(shape, dtype, device, seed, first.weight) for seed in (1, 2))]
    expected = truth(first, task == "trained")
    lines = [Line(provider.name, task, shape) for provider in providers]
    ready = []
    for provider, line in zip(providers, lines, strict=True):
        line.note = provider.absence(device, task) or _checked(provider, line, first, expected, dtype)
        if not line.note:
            ready.append((provider, line))
    del expected
    run = {line.provider: partial(_timed, provider, task, drawings, device) for provider, line in ready}
    times = time_in_turns(run, turns, seconds)
    for _, line in ready:
        line.forward_ms, line.backward_ms = times[line.provider]
    operations = 2 * shape[0] * shape[1] * shape[2] * TASKS[task]
    for _, line in ready:
        line.tflops = operations / line.total_ms / 1e9
        line.share = line.tflops / rate
    return lines


def product_rate(shape: Shape, dtype: torch.dtype, device: str) -> float:
    """Return the best rate of the library's products, TFLOP/s: at this shape and of a square one."""
    best = 0.0
    for rows, width, vocab in (shape, (SQUARE[device],) * 3):
        inputs = draw((rows, width, vocab), dtype, device, 0, None)
        times = [clock(lambda x=inputs.hidden, w=inputs.weight: torch.mm(x, w.T), device) for _ in range(8)]
        best = max(best, 2 * rows * width * vocab / statistics.median(times[2:]) / 1e9)
    return best


def _leaves(inputs: Inputs, task: str) -> tuple[Tensor, Tensor, list[Tensor]]:
    hidden = inputs.hidden.detach().requires_grad_(task != "no_grad")
    weight = inputs.weight.detach().requires_grad_(task == "trained")
    return hidden, weight, [leaf for leaf in (hidden, weight) if leaf.requires_grad]


def _timed(
    provider: Provider, task: str, drawings: Sequence[Inputs], device: str, turn: int
) -> tuple[float, float]:
    inputs = drawings[turn % len(drawings)]
    hidden, weight, wanted = _leaves(inputs, task)
    kept: list[Any] = []
    with torch.set_grad_enabled(task != "no_grad"):
        forward = clock(lambda: kept.append(provider.score(hidden, weight, inputs.targets)), device)
    if not wanted:
        return forward, 0.0
    logps = kept.pop()
    upstream = inputs.upstream.to(logps.dtype)
    return forward, clock(lambda: kept.append(torch.autograd.grad(logps, wanted, upstream)), device)


def _once(provider: Provider, task: str, inputs: Inputs) -> list[Tensor]:
    hidden, weight, wanted = _leaves(inputs, task)
    with torch.set_grad_enabled(task != "no_grad"):
        logps = provider.score(hidden, weight, inputs.targets)
    grads = torch.autograd.grad(logps, wanted, inputs.upstream.to(logps.dtype)) if wanted else ()
    return [logps.detach(), *grads]


def _checked(
    provider: Provider,
    line: Line,
    inputs: Inputs,
    expected: tuple[Tensor, Tensor, Tensor | None],
    dtype: torch.dtype,
) -> str:
    """Fill in errors, memory and repeatability; return what is wrong, or nothing."""
    device = inputs.hidden.device.type
    try:
        _once(provider, line.task, inputs)  # compiles
        base = base_mib(device)
        found = _once(provider, line.task, inputs)
        line.peak_mib = peak_mib(device) - base
        again = _once(provider, line.task, inputs)
    except Exception as error:  # noqa: BLE001  libraries and their compilers raise errors of every kind
        return failure_of(error)
    line.repeats_bits = all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    line.logp_error = (found[0].double() - expected[0]).abs().max().item()
    errors = [relative_error(a, b) for a, b in zip(found[1:], expected[1:], strict=False) if b is not None]
    line.hidden_error, line.weight_error = (*errors, 0.0, 0.0)[:2]
    most, most_grad = GATES[dtype]
    if not line.logp_error <= most:
        return f"wrong: a log-prob is off by {line.logp_error:.2g} > {most:g} nats"
    if not max(errors, default=0.0) <= most_grad:
        return f"wrong: a gradient is off by {max(errors):.2g} > {most_grad:g}"
    return ""


def _report(shape: Shape, task: str, rate: float, lines: Sequence[Line]) -> str:
    head = ["", "forward ms", "backward ms", "total ms", "TFLOP/s", "of floor", "peak MiB"]
    head += ["log-prob error", "dH error", "dW error", "same bits"]
    rows = []
    for line in lines:
        if line.note == "does not do this":
            continue
        if line.note:
            rows.append([line.provider, line.note, *[""] * (len(head) - 2)])
            continue
        forward, backward = (statistics.median(times) for times in (line.forward_ms, line.backward_ms))
        times = [f"{value:.2f}" for value in (forward, backward, line.total_ms)]
        speed = [f"{line.tflops:.3g}", f"{line.share:.0%}", f"{line.peak_mib:.0f}"]
        errors = [f"{value:.1e}" for value in (line.logp_error, line.hidden_error, line.weight_error)]
        rows.append([line.provider, *times, *speed, *errors, "yes" if line.repeats_bits else "no"])
    return f"\n{_title(shape)}, {task}; products run at {rate:.3g} TFLOP/s\n{table(head, rows)}"


def _title(shape: Shape) -> str:
    return "N={} H={} V={}".format(*shape)


def _shape(text: str) -> Shape:
    rows, width, vocab = (int(part) for part in text.split(","))
    return rows, width, vocab


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_linear_logp",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--dtype", choices=DTYPES, help="default float32 on the CPU, bfloat16 on a GPU")
    parser.add_argument("--shape", nargs="+", type=_shape, metavar="N,H,V")
    parser.add_argument("--task", nargs="+", choices=TASKS)
    parser.add_argument(
        "--only", nargs="+", choices=PROVIDERS, metavar="NAME", help="take part: " + "; ".join(PROVIDERS)
    )
    parser.add_argument("--turns", type=int, default=30, help="timed runs of each")
    parser.add_argument("--seconds", type=float, default=10.0, help="after which a contender's turns end")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")
    parser.add_argument(
        "--within", type=float, default=float("inf"), help="seconds after which no further problem is begun"
    )
    parser.add_argument("--name", help="of the files in benchmarks/results; default linear_logp_DEVICE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
