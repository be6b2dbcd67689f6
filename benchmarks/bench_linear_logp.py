"""Head log-probs with any upstream gradient: time, share of the products' floor, memory, error; in turns.

    python -m benchmarks.bench_linear_logp --device cuda
    python -m benchmarks.bench_linear_logp --device cpu

Everybody gets the same tensors. An op whose log-probs or gradients are off float64 by more than its
precision explains is reported as failed and not timed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from benchmarks.logp.measure import Line, measure, product_rate
from benchmarks.logp.plot import plot
from benchmarks.logp.problem import TASKS
from benchmarks.logp.providers import PROVIDERS
from benchmarks.logp.report import report, title
from benchmarks.shared.environment import environment
from benchmarks.shared.ops import Shape, parser_of, read, run_problems

SHAPES: dict[str, list[Shape]] = {
    "cpu": [(2048, 256, 32000), (2048, 512, 32000), (2048, 1024, 32000)],
    "cuda": [
        (rows, width, vocab)
        for rows in (2048, 8192, 512)
        for width, vocab in ((1024, 151936), (2048, 151936), (4096, 128256))
    ],
}
"""Rows, hidden size, vocabulary: Qwen3 0.6B and 1.7B and Llama 3.1 8B on the GPU; the most telling first."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit code."""
    given = read(_parser(), arguments)
    record: dict[str, Any] = {
        "benchmark": "linear_logp",
        "environment": environment(given.device, given.threads),
        "dtype": str(given.dtype).removeprefix("torch."),
        "products": TASKS,
        "product_tflops": {},
        "lines": [],
        "left_out": [],
    }
    problems = [
        (shape, task) for shape in given.shape or SHAPES[given.device] for task in given.task or TASKS
    ]
    rates = record["product_tflops"]
    solving = {
        f"{title(shape)}, {task}": partial(_solve, given, shape, task, rates) for shape, task in problems
    }
    stored = run_problems(given.name or f"linear_logp_{given.device}", record, solving, given.within)
    print("stored in", stored, "and", plot(record["lines"], stored.with_suffix(".png")))
    return 0


def _solve(
    given: argparse.Namespace, shape: Shape, task: str, rates: dict[str, float]
) -> tuple[str, list[Line]]:
    """Measure one problem; the rate of products is taken once for every shape, right before."""
    if title(shape) not in rates:
        rates[title(shape)] = product_rate(shape, given.dtype, given.device)
    rate = rates[title(shape)]
    providers = [PROVIDERS[name] for name in given.only or PROVIDERS]
    found = measure(shape, task, given.dtype, given.device, providers, given.limits, rate)
    return report(shape, task, rate, found), found


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("linear_logp", __doc__, "N,H,V", PROVIDERS)
    parser.add_argument("--task", nargs="+", choices=TASKS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
