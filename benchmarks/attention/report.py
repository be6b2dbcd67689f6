"""The table of one problem of attention."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks.attention.measure import HEADS, REPEATED, Line
from benchmarks.attention.packs import pack, visible_pairs
from benchmarks.shared.ops import Shape, total_ms
from benchmarks.shared.results import table


def report(shape: Shape, heads: str, tokens: int, lines: Sequence[Line]) -> str:
    """Return a line for everybody, with the reason where there are no times."""
    head = ["", "tokens", "forward ms", "backward ms", "total ms", "times repeated", "layout ms", "first s"]
    head += ["compiled anew", "peak MiB", "output error", "dQ", "dK", "dV", "same bits"]
    peer = next((line for line in lines if line.name == REPEATED and line.forward_ms), None)
    rows = []
    for line in lines:
        if line.note:
            rows.append([line.name, line.note, *[""] * (len(head) - 2)])
            continue
        forward, backward = (statistics.median(times) for times in (line.forward_ms, line.backward_ms))
        ratio = f"{total_ms(peer) / total_ms(line):.2f}" if peer is not None else ""
        row = [
            line.name,
            f"{line.tokens}",
            f"{forward:.2f}",
            f"{backward:.2f}",
            f"{total_ms(line):.2f}",
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
