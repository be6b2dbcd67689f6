"""From what the contenders measured to the record that is stored and the table on the screen."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.shared.results import table
from benchmarks.step.in_turns.contenders import PEER, SORTED
from benchmarks.step.in_turns.gate import GATE_STEPS
from benchmarks.step.in_turns.team import Legs, Measured
from benchmarks.step.rows import shape_of
from benchmarks.step.task import Task


def record_of(
    task: Task, legs: Legs, measured: dict[str, Measured], gate: dict[str, Any], surroundings: dict[str, Any]
) -> dict[str, Any]:
    """Gather all that is stored."""
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


def report(record: dict[str, Any]) -> str:
    """Return the rows, the gate and a line for everybody."""
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
