"""Optimizer steps of prefopt and TRL's DPOTrainer: a small model on a CPU, or models at full size on a GPU.

python -m benchmarks.bench_step --help                  # on a CPU, in turns
python -m benchmarks.bench_step --device cuda --help    # at full size
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from benchmarks.step.full_size import command as full_size
from benchmarks.step.in_turns import command as in_turns


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark that is asked for and return the exit code."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    return full_size.main(words) if _is_full_size(words) else in_turns.main(words)


def _is_full_size(words: Sequence[str]) -> bool:
    """Tell whether models at full size are asked for, or a quick run of that benchmark."""
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--device")
    first.add_argument("--quick", action="store_true")
    known, _ = first.parse_known_args(words)
    return bool(known.quick or known.device == "cuda")


if __name__ == "__main__":
    raise SystemExit(main())
