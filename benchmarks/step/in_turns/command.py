"""Pairs per second and peak memory of optimizer steps: prefopt against TRL's DPOTrainer, in turns, in one run.

    python -m benchmarks.bench_step --data ../shared/data/hh-rlhf-harmless/test.jsonl.gz
    python -m benchmarks.bench_step --device cuda    # models at full size, see --device cuda --help

On the CPU all contenders train one 4-layer Llama (hidden 256, vocabulary 8192, float32) on the same token ids with
the same AdamW. Before any speed is shown, a gate compares the losses of 8 full-batch steps with TRL's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.shared.environment import ROOT, environment, is_installed
from benchmarks.shared.results import save
from benchmarks.step.in_turns.contenders import CONTENDERS, PEER
from benchmarks.step.in_turns.gate import check_gate
from benchmarks.step.in_turns.report import record_of, report
from benchmarks.step.in_turns.team import BenchmarkError, Legs, Team
from benchmarks.step.rows import load_rows
from benchmarks.step.task import Task

DATA = ROOT / ".." / "shared" / "data" / "hh-rlhf-harmless" / "test.jsonl.gz"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit code."""
    given = _parser().parse_args(arguments)
    names = [name for name in given.only or CONTENDERS if not name.startswith(PEER) or is_installed("trl")]
    if PEER not in names:
        _say("TRL is not installed or was left out: nothing to compare with, so times and memory only")
    legs = Legs(given.warmup, max(1, given.steps // given.steps_per_round), given.steps_per_round)
    rows = load_rows(_data(given.data), vocabulary=8192, max_tokens=1024)
    task = Task(
        rows,
        num_steps=legs.total,
        warmup=legs.warmup,
        device=given.device,
        pairs_per_step=given.pairs_per_step,
        tokens_per_batch=given.tokens_per_batch,
    )
    if legs.total > task.plan().num_steps(1):
        _parser().error(f"--steps: {legs.total} steps need more pairs than the {len(rows.groups)} there are")
    try:
        gate = check_gate(task, names, given.threads)
        measured = Team(
            {name: partial(CONTENDERS[name], task) for name in names}, legs, given.device, given.threads
        ).run(_say)
    except BenchmarkError as error:
        _say(f"error: {error}")
        return 1
    record = record_of(task, legs, measured, gate, environment(given.device, given.threads))
    print(report(record))
    print("stored in", save(given.name or f"step_{given.device}", record))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_step",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: another benchmark")
    parser.add_argument("--quick", action="store_true", help="that one on tiny models, on any device")
    parser.add_argument("--pairs-per-step", type=int, default=8)
    parser.add_argument("--tokens-per-batch", type=int, default=8192, help="most tokens in one of our packs")
    parser.add_argument("--steps", type=int, default=40, help="timed optimizer steps")
    parser.add_argument(
        "--steps-per-round", type=int, default=4, help="steps before the next contender's turn"
    )
    parser.add_argument("--warmup", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data", type=Path, help="JSON lines with chosen and rejected transcripts")
    parser.add_argument(
        "--only", nargs="+", choices=CONTENDERS, metavar="NAME", help="take part: " + "; ".join(CONTENDERS)
    )
    parser.add_argument("--name", help="of the file in benchmarks/results; default step_DEVICE")
    return parser


def _data(given: Path | None) -> Path | None:
    if given is not None and not given.exists():
        _parser().error(f"--data: {given} does not exist")
    return given or (DATA.resolve() if DATA.exists() else None)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
