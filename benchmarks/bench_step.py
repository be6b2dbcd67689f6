"""Pairs per second and peak memory of optimizer steps: prefopt against TRL's DPOTrainer, in turns, in one run.

    python -m benchmarks.bench_step --data ../shared/data/hh-rlhf-harmless/test.jsonl.gz
    python -m benchmarks.bench_step --device cuda    # models at full size, see --device cuda --help

On the CPU all contenders train one 4-layer Llama (hidden 256, vocabulary 8192, float32) on the same token ids with
the same AdamW. Before any speed is shown, a gate compares the losses of 8 full-batch steps with TRL's.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import _full_step
from benchmarks._contenders import CONTENDERS, worst_gap
from benchmarks._rows import load_rows, shape_of
from benchmarks._runner import BenchmarkError, Legs, Measured, Team, environment, is_installed, save, table
from benchmarks._task import Task

DATA = Path(__file__).resolve().parents[1] / ".." / "shared" / "data" / "hh-rlhf-harmless" / "test.jsonl.gz"
GATE_ROWS, GATE_STEPS = 16, 8
GATE_TOKENS = 256
"""The gate takes the first rows whose longest answer with its prompt has at most so many tokens."""
GATE_LR = 1e-4
"""Large enough for the loss to fall by tenths in 8 steps, so that a wrong gradient would show."""
GATE_TOLERANCE = 1e-4
"""Most that a loss may differ from TRL's; float32 rounding alone leaves about 4e-6 after 8 steps."""
PEER = "TRL"
SORTED = ("TRL, grouped by length",)
"""These batch rows of like length, so a step of theirs holds other pairs."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit code."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if _is_full_size(words):
        return _full_step.main(words)
    given = _parser().parse_args(words)
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
    record = _record(task, legs, measured, gate, environment(given.device, given.threads))
    print(_report(record))
    print("stored in", save(given.name or f"step_{given.device}", record))
    return 0


def _is_full_size(words: Sequence[str]) -> bool:
    """Tell whether models at full size are asked for, or a quick run of that benchmark."""
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--device")
    first.add_argument("--quick", action="store_true")
    known, _ = first.parse_known_args(words)
    return bool(known.quick or known.device == "cuda")


def check_gate(task: Task, names: Sequence[str], threads: int) -> dict[str, Any]:
    """Compare every contender's losses over 8 full-batch steps with TRL's.

    Raises:
        BenchmarkError: a loss differs by more than the tolerance, or the losses do not move.
    """
    if PEER not in names:
        return {}
    fitting = [g for g in task.rows.groups if len(g.prompts[0]) + max(map(len, g.responses)) <= GATE_TOKENS]
    rows = replace(task.rows, groups=fitting[:GATE_ROWS])
    small = replace(
        task,
        rows=rows,
        num_steps=GATE_STEPS,
        pairs_per_step=GATE_ROWS,
        tokens_per_batch=1 << 30,
        warmup=0,
        lr=GATE_LR,
        records_losses=True,
    )
    # batches of other rows have other losses
    team = Team(
        {name: partial(CONTENDERS[name], small) for name in names if name not in SORTED},
        Legs(warmup=0, rounds=1, steps=GATE_STEPS),
        task.device,
        threads,
    )
    losses = {name: result.losses for name, result in team.run().items()}
    gaps = {name: worst_gap(values, losses[PEER]) for name, values in losses.items() if name != PEER}
    for name, gap in gaps.items():
        if not gap <= GATE_TOLERANCE:
            raise BenchmarkError(
                f"gate: {name} is off TRL's loss by {gap:.3g} > {GATE_TOLERANCE:g}; no speed is shown."
            )
    first, *_, last = (loss for loss in losses[PEER] if loss is not None)
    if not first - last > 100 * GATE_TOLERANCE:
        raise BenchmarkError(
            f"gate: the loss only went from {first:.6f} to {last:.6f}, which proves nothing."
        )
    return {"tolerance": GATE_TOLERANCE, "lr": GATE_LR, "rows": GATE_ROWS, "gaps": gaps, "losses": losses}


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


def _record(
    task: Task, legs: Legs, measured: dict[str, Measured], gate: dict[str, Any], surroundings: dict[str, Any]
) -> dict[str, Any]:
    timed = task.order()[legs.warmup * task.pairs_per_step :]
    return {
        "benchmark": "step",
        "environment": surroundings,
        "rows": task.rows.source,
        "shape": shape_of([task.rows.groups[row] for row in timed], task.pairs_per_step),
        "model": task.config.to_diff_dict(),
        "pairs_per_step": task.pairs_per_step,
        "tokens_per_batch": task.tokens_per_batch,
        "legs": legs,
        "memory": (
            "growth of the peak, from just before the model is made to the end of training: torch.cuda on cuda, "
            "the resident set (VmHWM) of a process of its own on the CPU, its high-water mark reset before"
        ),
        "gate": gate,
        "summary": {name: summary(name, measured, task.pairs_per_step * legs.steps) for name in measured},
        "measured": measured,
    }


def summary(name: str, measured: dict[str, Measured], pairs_per_round: int) -> dict[str, float]:
    """Work out one line of the table; ratios are against TRL with a live reference.

    Rounds hold the same pairs for everyone, so speed-ups are medians over rounds of the ratio within the
    round. A contender that sorts rows by length meets other pairs in a round: its ratio is that of totals.
    """
    mine = measured[name]
    line = {
        "pairs_per_second": pairs_per_round * len(mine.seconds) / sum(mine.seconds),
        "cpu_seconds_per_pair": sum(mine.cpu_seconds) / (pairs_per_round * len(mine.seconds)),
        "peak_mib": mine.peak_mib,
        "process_mib": mine.process_mib,
        "build_seconds": mine.build_seconds,
    }
    if PEER not in measured:
        return line
    peer = measured[PEER]
    total = sum(peer.seconds) / sum(mine.seconds)
    in_rounds = [theirs / ours for theirs, ours in zip(peer.seconds, mine.seconds, strict=True)]
    return line | {
        "speedup": total if name in SORTED else statistics.median(in_rounds),
        "speedup_of_totals": total,
        "speedup_in_cpu_time": sum(peer.cpu_seconds) / sum(mine.cpu_seconds),
        "memory_ratio": mine.peak_mib / peer.peak_mib,
    }


def _report(record: dict[str, Any]) -> str:
    shape, gate = record["shape"], record["gate"]
    rows = (
        f"{record['rows']}: {shape['pairs']} pairs, median tokens {shape['prompt_median']:.0f} + "
        f"{shape['chosen_median']:.0f} / {shape['rejected_median']:.0f}; tokens through the trunk against the "
        f"shared layout: padding-free {shape['padding_free_ratio']:.2f}x, padded {shape['padded_ratio']:.2f}x"
    )
    lines = [rows]
    if gate:
        gap = max(gate["gaps"].values())
        lines.append(f"gate: losses of {GATE_STEPS} full-batch steps differ from TRL's by at most {gap:.1e}")
    head = [
        "",
        "pairs/s",
        "x TRL",
        "x TRL, totals",
        "x TRL, CPU time",
        "peak MiB",
        "of TRL's",
        "process MiB",
        "start s",
    ]
    return "\n".join(
        [*lines, "", table(head, [_line(name, line) for name, line in record["summary"].items()])]
    )


def _line(name: str, line: dict[str, float]) -> list[str]:
    ratios = [f"{line[key]:.2f}" if key in line else "-" for key in ("speedup", "speedup_of_totals")]
    cpu, memory = (
        f"{line[key]:.2f}" if key in line else "-" for key in ("speedup_in_cpu_time", "memory_ratio")
    )
    peak, process = f"{line['peak_mib']:.0f}", f"{line['process_mib']:.0f}"
    return [
        name,
        f"{line['pairs_per_second']:.2f}",
        *ratios,
        cpu,
        peak,
        memory,
        process,
        f"{line['build_seconds']:.1f}",
    ]


if __name__ == "__main__":
    raise SystemExit(main())
