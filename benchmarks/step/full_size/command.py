"""Optimizer steps of models at full size: prefopt's parts one by one, and TRL at its best, against the floor.

    python -m benchmarks.bench_step --device cuda
    python -m benchmarks.bench_step --device cpu --quick

Weights, gradients and AdamW's moments are bfloat16 on both sides, without autocast; AdamW is torch's fused
one; weights and token ids are random. The reference has weights of its own, so that losses differ from ln 2
and can be compared. Every contender's loss and gradient are held to float32 ones before it is timed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.shared.environment import environment
from benchmarks.shared.results import RESULTS, save
from benchmarks.step.full_size.plot import plot
from benchmarks.step.full_size.report import report, summarise
from benchmarks.step.full_size.session import Pace, Session
from benchmarks.step.full_size.stages import PARTS, QUICK_STAGES, SMALL_FLOAT32, STAGES, Stage
from benchmarks.step.full_size.worker import Worker, WorkError
from benchmarks.step.models import MODELS
from benchmarks.step.workloads import WORKLOADS, uniform

SETTINGS = (
    "both sides: weights, gradients and AdamW moments in the model's dtype, fused AdamW, clipping at 1, no dropout, "
    "constant learning rate, random weights and ids, the same pairs per optimizer step; the reference has other "
    "weights than training starts from; batches as large as fit and pay; memory: torch's peak from the first step on"
)
QUICK = Pace(seconds=45.0, contender=0.5, warmup=1, steps=3, least=3.0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit code."""
    given = _parser().parse_args(arguments)
    stages = _stages(given)
    pace = QUICK if given.quick else Pace()
    if given.seconds is not None:
        pace = replace(pace, seconds=given.seconds)
    if given.steps is not None:
        pace = replace(pace, steps=given.steps)
    name = given.name or f"step_full_{'quick_' if given.quick else ''}{given.device}"
    worker = Worker(given.threads)
    head = {
        "benchmark": "step, full size",
        "environment": environment(given.device, given.threads),
        "settings": SETTINGS,
        "pace": pace,
    }
    session = Session(
        given.device,
        worker,
        pace,
        keep=lambda record: _keep(name, head | record, given.out),
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    small = None if given.quick else Stage(SMALL_FLOAT32, uniform(256, 96, 64, 8), ())
    try:
        record = session.run(stages, small)
    except WorkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        worker.close()
    summarise(record)
    print(report(record))
    drawn = plot(record, given.out / f"{name}.png")
    print("stored in", save(name, head | record, given.out), "and", drawn)
    return 0 if _is_sound(record) else 1


def _keep(name: str, record: dict[str, Any], folder: Path) -> None:
    """Store what is there so far."""
    summarise(record)
    save(name, record, folder)


def _is_sound(record: dict[str, Any]) -> bool:
    """Tell whether something was timed, and nothing of ours failed or was wrong."""
    lines = [line for entry in record["stages"] for line in entry["contenders"]]
    compared = record["float32"].get("ways", {})
    notes = [line["note"] for line in lines if not line["name"].startswith("TRL")]
    notes += [line["note"] for name, line in compared.items() if not name.startswith("TRL")]
    notes += [entry.get("note", "") for entry in record["stages"]] + [record["float32"].get("note", "")]
    is_timed = any("pairs_per_second" in line for line in lines)
    return is_timed and not any(note.startswith(("failed", "wrong")) for note in notes)


def _stages(given: argparse.Namespace) -> list[Stage]:
    stages = QUICK_STAGES if given.quick else STAGES
    if given.quick and (given.model or given.workload):
        _parser().error("--quick: has models and workloads of its own. Leave --model and --workload out.")
    if not given.model and not given.workload:
        return [replace(stage, parts=tuple(given.part or stage.parts)) for stage in stages]
    models, workloads = given.model or ["Qwen3-1.7B"], given.workload or ["512 + 256 / 256"]
    parts = tuple(given.part or ("ladder", "trl"))
    return [Stage(MODELS[model], WORKLOADS[load], parts) for model in models for load in workloads]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_step",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--quick", action="store_true", help="a tiny model and short rows, to see that it runs"
    )
    parser.add_argument("--seconds", type=float, help="for everything together; default 540, with --quick 45")
    parser.add_argument("--steps", type=int, help="timed steps of each contender; default 12, with --quick 3")
    parser.add_argument(
        "--model", nargs="+", choices=MODELS, metavar="NAME", help="out of " + "; ".join(MODELS)
    )
    parser.add_argument(
        "--workload", nargs="+", choices=WORKLOADS, metavar="NAME", help="out of " + "; ".join(WORKLOADS)
    )
    parser.add_argument("--part", nargs="+", choices=PARTS)
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--name", help="of the files there; default step_full_DEVICE")
    return parser
