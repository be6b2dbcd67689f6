"""Train one contender for a few steps in this process: seconds of every step, memory, compilations, losses."""

from __future__ import annotations

import gc
import logging
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch._dynamo.utils import counters

from benchmarks.shared.meters import base_mib, peak_mib
from benchmarks.shared.results import failure_of
from benchmarks.step.contender import NotAvailableError
from benchmarks.step.flops import load_of, step_flops
from benchmarks.step.full_size.memory import planned_mib
from benchmarks.step.full_size.worker import clean_up
from benchmarks.step.prefopt_contender import Prefopt, Way
from benchmarks.step.task import Task
from benchmarks.step.trl_contender import Trl, TrlWay
from prefopt.errors import RecipeError

LEAST_STEPS = 3
"""Timed before a contender that has used up its seconds is stopped."""


@dataclass(frozen=True)
class Job:
    """One contender, and how long its steps may take together.

    ``size`` is the batch that is varied: packed tokens of ours, pairs of TRL's.
    """

    name: str
    task: Task
    way: Way | TrlWay
    seconds: float = 60.0
    size: int | None = None

    def contender(self) -> Prefopt | Trl:
        """Build the contender with its batch size."""
        if isinstance(self.way, TrlWay):
            return Trl(replace(self.task, pairs_per_batch=self.size), self.way)
        size = self.size or self.task.tokens_per_batch
        return Prefopt(replace(self.task, tokens_per_batch=size), self.way)


class Meter:
    """Take the time at the end of every step without waiting for the device, but for the first one.

    Args:
        device: "cpu" or "cuda".
        warmup: steps that are not timed, at least one.
        seconds: after these the training is over, once there are a few timed steps.
    """

    def __init__(self, device: str, warmup: int, seconds: float) -> None:
        self.device, self.warmup, self.seconds = device, warmup, seconds
        self.marks: list[Any] = []
        self.static_mib = base_mib(device)
        self.graphs_before = 0
        self.first_step_seconds = 0.0
        self.began = time.perf_counter()

    def __call__(self, loss: float | None) -> bool:
        self.marks.append(self._mark())
        count = len(self.marks)
        if count == 1:
            self._wait()
            self.first_step_seconds = time.perf_counter() - self.began
        if count == self.warmup:
            self.graphs_before = compilations()["graphs"]
        is_late = time.perf_counter() - self.began > self.seconds
        return is_late and count >= self.warmup + LEAST_STEPS

    def _mark(self) -> Any:
        if self.device == "cpu":
            return time.perf_counter()
        make: Any = torch.cuda.Event
        event = make(enable_timing=True)
        event.record()
        return event

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def result(self) -> dict[str, Any]:
        """Return what was taken down; step times in seconds, memory in MiB."""
        self._wait()
        timed = self.marks[self.warmup - 1 :]
        found = compilations()
        return {
            "first_step_seconds": self.first_step_seconds,
            "step_seconds": [self._between(a, b) for a, b in pairwise(timed)],
            "static_mib": self.static_mib,
            "peak_mib": peak_mib(self.device),
            "reserved_mib": torch.cuda.max_memory_reserved() / 2**20 if self.device == "cuda" else None,
            **found,
            "graphs_while_timed": found["graphs"] - self.graphs_before,
        }

    def _between(self, before: Any, after: Any) -> float:
        if self.device == "cpu":
            return float(after - before)
        return float(before.elapsed_time(after)) / 1e3


def compilations() -> dict[str, int]:
    """Return what torch.compile has done in this process: graphs made, and breaks between them."""
    return {"graphs": counters["stats"]["unique_graphs"], "breaks": sum(counters["graph_break"].values())}


def measure(job: Job) -> dict[str, Any]:
    """Build a contender, take its loss and gradient on the rows to be checked, then train and time it.

    Returns:
        What ``Meter.result`` and ``_work_of`` say, and ``note``: why there are no times.
    """
    try:
        said = _measure(job)
    except NotAvailableError as error:
        said = {"note": f"not available: {error}"}
    except torch.OutOfMemoryError as error:
        said = {
            "note": "does not fit into memory",
            "is_too_large": True,
            "detail": str(error).splitlines()[0],
        }
    except RecipeError as error:
        # what cannot be done here is refused so, and a single pair that does not fit, too
        if "does not fit into memory" in str(error):
            said = {"note": "does not fit into memory", "is_too_large": True, "detail": str(error)}
        else:
            said = {"note": f"not available: {error}"}
    return said | clean_up(job.task.device)


def _measure(job: Job) -> dict[str, Any]:
    halvings = _Halvings()
    contender = job.contender()
    contender.load()
    foreseen = _planned(contender)
    before = time.perf_counter()
    contender.build()
    said: dict[str, Any] = {"build_seconds": time.perf_counter() - before, "note": "", **foreseen}
    before = time.perf_counter()
    if job.task.checked:
        said["loss"], said["grad_norm"] = contender.check()
    said["check_seconds"] = time.perf_counter() - before
    gc.collect()
    with halvings.counting():
        meter = Meter(job.task.device, job.task.warmup, job.seconds)
        # once a pack was halved this size is out, so the rest need not be trained
        contender.train(lambda loss: meter(loss) or halvings.count > 0)
        said |= meter.result()
    if halvings.count:
        return said | {
            "note": "does not fit into memory",
            "is_too_large": True,
            "detail": "packs were halved",
        }
    return said | work_of(job, contender, len(said["step_seconds"]))


def _planned(contender: Prefopt | Trl) -> dict[str, Any]:
    """Return the memory that prefopt foresees for a way of its own, or why it foresees none; nothing waits for it."""
    if isinstance(contender, Trl):
        return {}
    try:
        return {"planned_mib": planned_mib(contender.task, contender.way)}
    except Exception as error:  # noqa: BLE001  the times of this contender do not depend on it
        return {"planned_mib": None, "plan_note": failure_of(error)}


def work_of(job: Job, contender: Prefopt | Trl, num_steps: int) -> dict[str, Any]:
    """Count what every timed step holds: pairs, tokens with each prompt once, operations in its own layout.

    ``least_flops`` are those of all timed steps in the shared layout, with nothing made twice but the logits.
    """
    steps = [contender.batches(job.task.warmup + at) for at in range(num_steps)]
    layout = "padded" if isinstance(job.way, TrlWay) else job.way.layout
    sizes, is_cached = job.task.model.counted, job.way.is_cached
    flops = [
        step_flops(
            sizes,
            load_of(batches, layout),
            head=head_kind(job),
            is_cached=is_cached,
            recomputes_layers=job.way.recomputes,
        )
        for batches in steps
    ]
    best_head = "frozen" if job.task.model.rank else "recomputed"
    least = [
        step_flops(sizes, load_of(batches, "shared"), head=best_head, is_cached=is_cached)
        for batches in steps
    ]
    rows = [[row for batch in batches for row in batch] for batches in steps]
    return {
        "step_pairs": [sum(len(owns) // 2 for _, owns in step) for step in rows],
        "step_tokens": [sum(prompt + sum(owns) for prompt, owns in step) for step in rows],
        "step_flops": flops,
        "least_flops": sum(least),
        "batches_per_step": sum(map(len, steps)) / max(1, len(steps)),
    }


def typical_seconds(said: dict[str, Any]) -> float:
    """Return what the timed steps take together when each takes the median time per operation.

    A stall of the host in one step would otherwise decide between contenders; it shows in the jitter.
    """
    per_flop = [time / work for time, work in zip(said["step_seconds"], said["step_flops"], strict=True)]
    seconds: float = statistics.median(per_flop) * sum(said["step_flops"])
    return seconds


def head_kind(job: Job) -> str:
    """Return how a contender's head gets its gradients, by a name out of ``HEAD_BACKWARD``."""
    is_frozen = job.task.model.rank > 0
    if isinstance(job.way, TrlWay):
        return "frozen, recomputed" if is_frozen else "recomputed"
    if job.way.head == "logits":
        return "frozen" if is_frozen else "kept"
    return "frozen" if is_frozen else "recomputed"


class _Halvings(logging.Handler):
    """Count the packs that our trainer halves because they do not fit."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += "halved" in record.getMessage()

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Listen to the trainer for the block."""
        logger = logging.getLogger("prefopt.trainer")
        logger.addHandler(self)
        try:
            yield
        finally:
            logger.removeHandler(self)
