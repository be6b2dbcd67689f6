"""Attention over pairs that share their prompt: every back-end against repeated prompts, in turns.

    python -m benchmarks.bench_attention --device cuda
    python -m benchmarks.bench_attention --device cpu

Rows are packed to a token budget. A back-end whose output or gradients are off float64 by more than its
precision explains is reported as failed and not timed. Repeated prompts are what packing without sharing
computes: flash attention over sequences on a GPU, our segments on a CPU.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from benchmarks.attention.measure import HEADS, NAMES, PACKINGS, Line, measure
from benchmarks.attention.report import report
from benchmarks.shared.environment import environment
from benchmarks.shared.ops import Shape, parser_of, read, run_problems
from prefopt.kernels.prefix_attention.flash_op import active_name

SHAPES: dict[str, list[Shape]] = {
    "cpu": [(64, 32, 32), (256, 64, 64)],
    "cuda": [(128, 256, 256), (512, 256, 256), (2048, 512, 512), (8192, 512, 512)],
}
"""Tokens of prompt, chosen and rejected answer."""
TOKENS = {"cpu": 1024, "cuda": 16384}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit code."""
    given = read(_parser(), arguments)
    record: dict[str, Any] = {
        "benchmark": "attention",
        "environment": environment(given.device, given.threads),
        "dtype": str(given.dtype).removeprefix("torch."),
        "flash": active_name() if given.device == "cuda" else None,
        "heads": HEADS,
        "packings": PACKINGS,
        "lines": [],
        "left_out": [],
    }
    chosen = given.heads or (["small"] if given.device == "cpu" else ["qwen3", "llama"])
    problems = [(heads, shape) for heads in chosen for shape in given.shape or SHAPES[given.device]]
    solving = {f"{shape}, {heads}": partial(_solve, given, heads, shape) for heads, shape in problems}
    stored = run_problems(given.name or f"attention_{given.device}", record, solving, given.within)
    print("stored in", stored)
    return 0


def _solve(given: argparse.Namespace, heads: str, shape: Shape) -> tuple[str, list[Line]]:
    tokens = given.tokens or TOKENS[given.device]
    found = measure(shape, heads, tokens, given.dtype, given.device, given.only or NAMES, given.limits)
    return report(shape, heads, tokens, found), found


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("attention", __doc__, "P,C,R", NAMES)
    parser.add_argument("--heads", nargs="+", choices=HEADS)
    parser.add_argument(
        "--tokens", type=int, help="of the packed row; default 1024 on the CPU, 16384 on a GPU"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
