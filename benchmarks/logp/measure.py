"""One problem of head log-probs, measured: everybody is checked, then timed in turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from benchmarks.logp.problem import TASKS, Inputs, draw, truth
from benchmarks.logp.providers import Provider
from benchmarks.shared.meters import median_ms
from benchmarks.shared.ops import Limits, Pass, Shape, relative_error, time_in_turns, total_ms, try_out

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


def measure(
    shape: Shape,
    task: str,
    dtype: torch.dtype,
    device: str,
    providers: Sequence[Provider],
    limits: Limits,
    rate: float,
) -> list[Line]:
    """Check everybody, then time those who passed in turns.

    Args:
        shape: rows, hidden size and vocabulary.
        task: a name out of ``TASKS``.
        dtype: of hidden states and head.
        device: "cpu" or "cuda".
        providers: who takes part.
        limits: of the timed turns.
        rate: of the library's products, TFLOP/s.
    """
    torch.compiler.reset()  # it compiles a function for a few shapes only, then falls back to eager
    first = draw(shape, dtype, device, 0, None)
    drawings = [first, *(draw(shape, dtype, device, seed, first.weight) for seed in (1, 2))]
    expected = truth(first, task == "trained")
    lines = [Line(provider.name, task, shape) for provider in providers]
    ready = []
    for provider, line in zip(providers, lines, strict=True):
        line.note = provider.absence(device, task) or _checked(provider, line, first, expected, dtype)
        if not line.note:
            ready.append((line, partial(_on_turn, provider, task, drawings)))
    del expected
    time_in_turns(ready, device, limits)
    operations = 2 * shape[0] * shape[1] * shape[2] * TASKS[task]
    for line, _ in ready:
        line.tflops = operations / total_ms(line) / 1e9
        line.share = line.tflops / rate
    return lines


def product_rate(shape: Shape, dtype: torch.dtype, device: str) -> float:
    """Return the best rate of the library's products, TFLOP/s: at this shape and of a square one."""
    best = 0.0
    for rows, width, vocab in (shape, (SQUARE[device],) * 3):
        inputs = draw((rows, width, vocab), dtype, device, 0, None)
        taken = median_ms(partial(torch.mm, inputs.hidden, inputs.weight.T), device, warmup=2, timed=6)
        best = max(best, 2 * rows * width * vocab / taken / 1e9)
    return best


def _pass(provider: Provider, task: str, inputs: Inputs) -> Pass:
    hidden = inputs.hidden.detach().requires_grad_(task != "no_grad")
    weight = inputs.weight.detach().requires_grad_(task == "trained")
    leaves = [leaf for leaf in (hidden, weight) if leaf.requires_grad]
    return Pass(lambda: provider.score(hidden, weight, inputs.targets), leaves, inputs.upstream)


def _on_turn(provider: Provider, task: str, drawings: Sequence[Inputs], turn: int) -> Pass:
    return _pass(provider, task, drawings[turn % len(drawings)])


def _checked(
    provider: Provider,
    line: Line,
    inputs: Inputs,
    expected: tuple[Tensor, Tensor, Tensor | None],
    dtype: torch.dtype,
) -> str:
    """Fill in errors, memory and repeatability; return what is wrong, or nothing."""
    tried = try_out(line, partial(_pass, provider, line.task, inputs), inputs.hidden.device.type)
    if tried is None:
        return line.note
    found = tried.results
    line.logp_error = (found[0].double() - expected[0]).abs().max().item()
    errors = [relative_error(a, b) for a, b in zip(found[1:], expected[1:], strict=False) if b is not None]
    line.hidden_error, line.weight_error = (*errors, 0.0, 0.0)[:2]
    most, most_grad = GATES[dtype]
    if not line.logp_error <= most:
        return f"wrong: a log-prob is off by {line.logp_error:.2g} > {most:g} nats"
    if not max(errors, default=0.0) <= most_grad:
        return f"wrong: a gradient is off by {max(errors):.2g} > {most_grad:g}"
    return ""
