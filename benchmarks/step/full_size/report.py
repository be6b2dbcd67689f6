"""From what the full-size step benchmark measured to the numbers that are compared, and its tables."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.shared.results import table
from benchmarks.step.full_size.measure import typical_seconds
from benchmarks.step.trl_contender import TrlWay

HEAD = ["", "batch", "pairs/s", "x before", "of limit", "x TRL", "tokens/s", "MFU", "of floor", "GiB"]
HEAD += ["planned", "first s", "jitter", "graphs", "loss off", "grad off"]
LEGEND = (
    "batch: packed tokens (ours) or pairs (TRL) at once; x before: against the rung above, of limit: its share of\n"
    "the ratio of operations; x TRL: against its fastest with the same kind of reference; tokens/s: each prompt\n"
    "once, no padding; MFU: operations of the own layout over the measured product rate; of floor: those of the\n"
    "shared layout; GiB: peak allocated, planned: as prefopt foresees it; first s: the rows that are\n"
    "checked and the first step, compilation included; jitter: quartile distance of seconds per operation over its\n"
    "median; graphs: compiled while timed; off: from the truth."
)


def product_rate(record: dict[str, Any]) -> float:
    """Return the median of the product rates measured during the run, operations per second."""
    rates: list[float] = [found["product_tflops"] for found in record["ceilings"]]
    return 1e12 * statistics.median(rates)


def summarise(record: dict[str, Any]) -> None:
    """Add a ``summary`` to every contender that was timed, and to every stage TRL's fastest ways."""
    rate = product_rate(record)
    for entry in record["stages"]:
        timed = {line["name"]: line for line in entry["contenders"] if "pairs_per_second" in line}
        lines = list(timed.values())
        fastest = {kind: _fastest(lines, kind == "cached", of_trl=True) for kind in ("live", "cached")}
        entry["fastest_trl"] = {kind: line and line["name"] for kind, line in fastest.items()}
        for line in timed.values():
            peer = fastest["cached" if line["way"].is_cached else "live"]
            line["summary"] = _summary(line, timed.get(line.get("before") or ""), peer, rate)


def _summary(
    line: dict[str, Any], before: dict[str, Any] | None, peer: dict[str, Any] | None, rate: float
) -> dict[str, float]:
    seconds, flops, pairs = typical_seconds(line), sum(line["step_flops"]), sum(line["step_pairs"])
    per_flop = [time / work for time, work in zip(line["step_seconds"], line["step_flops"], strict=True)]
    said = {
        "pairs_per_second": pairs / seconds,
        "pairs_per_second_of_totals": pairs / sum(line["step_seconds"]),
        "tokens_per_second": sum(line["step_tokens"]) / seconds,
        "mfu": flops / seconds / rate,
        "of_floor": line["least_flops"] / seconds / rate,
        "jitter": _spread(per_flop),
        "peak_gib": line["peak_mib"] / 1024,
    }
    if before is not None:
        other = sum(before["step_flops"]) / sum(before["step_pairs"])
        said["speedup"] = line["pairs_per_second"] / before["pairs_per_second"]
        said["speedup_limit"] = other / (flops / pairs)
    if peer is not None:
        said["speedup_over_trl"] = line["pairs_per_second"] / peer["pairs_per_second"]
    return said


def _spread(values: list[float]) -> float:
    """Return the distance of the quartiles over the median."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / middle


def report(record: dict[str, Any]) -> str:
    """Return one table per stage, with the reason where there are no numbers."""
    found = record["ceilings"][0]
    device = (
        f"products ({found['product']}) {found['product_tflops']:.3g} TFLOP/s, median of the run "
        f"{product_rate(record) / 1e12:.3g}; copy {found['copy_tbs']:.3g} TB/s"
    )
    lines = [device, _float32(record["float32"])]
    for entry in record["stages"]:
        lines += ["", _title(entry)]
        if note := entry.get("note"):
            lines.append(note)
            continue
        lines.append(table(HEAD, [_row(line) for line in entry["contenders"] if "summary" in line]))
        lines += [f"{line['name']}: {line['note']}" for line in entry["contenders"] if line["note"]]
        plans = {line["plan_note"] for line in entry["contenders"] if line.get("plan_note")}
        lines += [f"planned memory: {note}" for note in sorted(plans)]
        lines += [
            f"fastest TRL, {kind} reference: {name or '-'}" for kind, name in entry["fastest_trl"].items()
        ]
    return "\n".join([*lines, "", LEGEND, "", headline(record)])


def headline(record: dict[str, Any]) -> str:
    """Return one line per stage: what sharing is worth, and our fastest beside TRL's with either reference."""
    head = [
        "",
        "sharing x",
        "of limit",
        "cached: pairs/s",
        "TRL",
        "x",
        "live: pairs/s",
        "TRL",
        "x",
        "of floor",
    ]
    head += ["GiB", "TRL"]
    rows = []
    for entry in record["stages"]:
        timed = [line for line in entry["contenders"] if "summary" in line]
        cells = [entry["name"], *_sharing(timed)]
        best = {}
        for is_cached in (True, False):
            ours, theirs = (_fastest(timed, is_cached, of_trl) for of_trl in (False, True))
            rates = [_value(line, "pairs_per_second") for line in (ours, theirs)]
            cells += [_cell(rate, ".2f") for rate in rates]
            cells.append(_cell(rates[0] / rates[1] if rates[0] and rates[1] else None, ".2f"))
            best[is_cached] = (ours, theirs)
        ours, theirs = best[True] if best[True][0] else best[False]
        cells.append(_cell(_value(ours, "of_floor"), ".1%"))
        cells += [_cell(_value(line, "peak_gib"), ".2f") for line in (ours, theirs)]
        rows.append(cells)
    return table(head, rows)


def _sharing(timed: list[dict[str, Any]]) -> list[str]:
    for line in timed:
        said = line["summary"]
        if getattr(line["way"], "layout", "") == "shared" and "padding-free" in (line.get("before") or ""):
            return [f"{said['speedup']:.2f}", f"{said['speedup'] / said['speedup_limit']:.0%}"]
    return ["-", "-"]


def _fastest(timed: list[dict[str, Any]], is_cached: bool, of_trl: bool) -> dict[str, Any] | None:
    lines = [
        line
        for line in timed
        if isinstance(line["way"], TrlWay) == of_trl and line["way"].is_cached == is_cached
    ]
    return max(lines, key=lambda line: float(line["pairs_per_second"]), default=None)


def _value(line: dict[str, Any] | None, key: str) -> float | None:
    return None if line is None else float(line["summary"][key])


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _title(entry: dict[str, Any]) -> str:
    real = entry["realised"]
    return (
        f"{entry['name']} ({entry['model']}): {real['rows']} rows, medians {real['prompt_median']:g} + "
        f"{real['answer_median']:g}, prompt : answer {real['prompt_to_answer']:g}; padding-free rows take "
        f"{entry['sharing_limit']:.2f} times the operations of shared ones, padding whole steps "
        f"{entry['padding']:.2f} times their tokens"
    )


def _float32(found: dict[str, Any]) -> str:
    ways = found.get("ways", {})
    if not ways:
        return f"float32: not compared ({found.get('note', 'no model for it')})"
    agreeing = [line["gaps"]["loss"] for line in ways.values() if line["gaps"] and not line["note"]]
    others = [f"; {name}: {line['note']}" for name, line in ways.items() if line["note"]]
    return (
        f"float32: {len(agreeing)} ways agree with the truth, by {max(agreeing, default=0.0):.1e} in the loss"
        f"{''.join(others)}"
    )


def _row(line: dict[str, Any]) -> list[str]:
    said = line["summary"]
    limit = said.get("speedup", 0.0) / said.get("speedup_limit", 1.0)
    planned = line.get("planned_mib")
    return [
        line["name"],
        str(line["size"]),
        f"{said['pairs_per_second']:.2f}",
        f"{said['speedup']:.2f}" if "speedup" in said else "-",
        f"{limit:.0%}" if "speedup" in said else "-",
        f"{said['speedup_over_trl']:.2f}" if "speedup_over_trl" in said else "-",
        f"{said['tokens_per_second']:.0f}",
        f"{said['mfu']:.1%}",
        f"{said['of_floor']:.1%}",
        f"{said['peak_gib']:.2f}",
        "-" if planned is None else f"{planned / 1024:.2f}",
        f"{line['check_seconds'] + line['first_step_seconds']:.1f}",
        f"{said['jitter']:.1%}",
        str(line["graphs_while_timed"]),
        f"{line['gaps']['loss']:.1e}",
        f"{line['gaps']['grad_norm']:.1e}",
    ]
