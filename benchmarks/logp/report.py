"""The table of one problem of head log-probs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks.logp.measure import Line
from benchmarks.shared.ops import Shape, total_ms
from benchmarks.shared.results import table


def report(shape: Shape, task: str, rate: float, lines: Sequence[Line]) -> str:
    """Return a line for everybody who does what is asked for, with the reason where there are no times."""
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
        times = [f"{value:.2f}" for value in (forward, backward, total_ms(line))]
        speed = [f"{line.tflops:.3g}", f"{line.share:.0%}", f"{line.peak_mib:.0f}"]
        errors = [f"{value:.1e}" for value in (line.logp_error, line.hidden_error, line.weight_error)]
        rows.append([line.provider, *times, *speed, *errors, "yes" if line.repeats_bits else "no"])
    return f"\n{title(shape)}, {task}; products run at {rate:.3g} TFLOP/s\n{table(head, rows)}"


def title(shape: Shape) -> str:
    """Name the sizes."""
    return "N={} H={} V={}".format(*shape)
