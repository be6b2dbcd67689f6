"""Run the stages of the full-size step benchmark one contender at a time, within a time for all of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from benchmarks.shared.results import failure_of
from benchmarks.step.flops import LAYOUTS, load_of, step_flops
from benchmarks.step.full_size.batch_size import bounds_of, search
from benchmarks.step.full_size.ceilings import ceilings
from benchmarks.step.full_size.measure import Job, measure, typical_seconds
from benchmarks.step.full_size.memory import fitting_tokens
from benchmarks.step.full_size.stages import (
    LADDER,
    SHORT,
    SIDES,
    SIDES_ON,
    Change,
    Stage,
    trl_changes,
    trl_name,
)
from benchmarks.step.full_size.truth import checked_rows, tolerances, truth, verdict
from benchmarks.step.full_size.worker import Doer, WorkError
from benchmarks.step.models import EOS, PAD
from benchmarks.step.prefopt_contender import Way
from benchmarks.step.rows import Rows, tokenizer_of
from benchmarks.step.task import Task
from benchmarks.step.trl_contender import TrlWay
from benchmarks.step.workloads import describe, rows_of

LATE = "left out: the time was up"


@dataclass(frozen=True, slots=True)
class Pace:
    """How long things may take.

    Args:
        seconds: all stages together.
        contender: the steps of one contender; it is stopped after them.
        overhead: on top, for building, checking and compiling; then its process is ended.
        warmup: steps that are not timed.
        steps: timed steps of one contender.
        least: no contender is started with less than so many seconds left.
    """

    seconds: float = 540.0
    contender: float = 15.0
    overhead: float = 90.0
    warmup: int = 3
    steps: int = 12
    least: float = 15.0


@dataclass(frozen=True, slots=True)
class StageRun:
    """A stage at work."""

    stage: Stage
    task: Task
    expected: dict[str, Any]  # the truth
    entry: dict[str, Any]  # of the record, to which contenders are added


@dataclass
class Session:
    """Everything measured so far; ``keep`` is called after each contender, so that nothing is lost."""

    device: str
    worker: Doer
    pace: Pace
    keep: Callable[[dict[str, Any]], None] = lambda record: None
    say: Callable[[str], None] = print
    record: dict[str, Any] = field(default_factory=lambda: {"ceilings": [], "float32": {}, "stages": []})
    device_bytes: int | None = None  # of a GPU
    best_trl: TrlWay = field(default_factory=TrlWay)
    _began: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        return self.pace.seconds - (time.monotonic() - self._began)

    def run(self, stages: Sequence[Stage], small: Stage | None) -> dict[str, Any]:
        """Measure the device, compare all contenders in float32 on a small model, then run every stage."""
        self.measure_ceilings()
        if small is not None:
            self.compare(small)
        for stage in stages:
            self.run_stage(stage)
            self.measure_ceilings()
        self.record["seconds"] = time.monotonic() - self._began
        self.keep(self.record)
        return self.record

    def measure_ceilings(self) -> None:
        """Measure the device once more: products slow down when it gets hot."""
        if self.record["ceilings"] and self.left < self.pace.least:
            return
        try:
            found = self.worker.do(ceilings, self.device, self.pace.overhead)
        except WorkError:
            if not self.record["ceilings"]:
                raise
            return
        self.device_bytes = found["device_bytes"]
        self.record["ceilings"].append(found)

    def compare(self, stage: Stage) -> None:
        """Hold every way that can run in float32 to the truth on a small model; nothing is timed."""
        task = self.task(stage, num_steps=2)
        try:
            expected = self.worker.do(truth, task, self.pace.overhead)
        except WorkError as error:
            self.record["float32"] = {"note": f"failed: {error}"}
            return
        ways: dict[str, Way | TrlWay] = {**_ladder_ways(), **_side_ways()}
        ways |= {trl_name(way): way for way in (TrlWay(), TrlWay(is_cached=True))}
        found: dict[str, Any] = {}
        for name, way in ways.items():
            if isinstance(way, Way) and (way.compiles or way.attention == "flex"):
                continue  # compared in the stages' precision, for which they are compiled anyway
            line = self._attempt(Job(name, task, way, seconds=0.0), expected)
            found[name] = {"gaps": line.get("gaps"), "note": line["note"]}
            self.say(f"float32: {name}: {line['note'] or 'agrees'}")
        self.record["float32"] = {
            "model": stage.model.describe(),
            "tolerance": tolerances(task),
            "ways": found,
        }
        self.keep(self.record)

    def run_stage(self, stage: Stage) -> None:
        """Measure all parts of one stage."""
        task = self.task(stage, self.pace.warmup + self.pace.steps)
        entry: dict[str, Any] = {
            "name": stage.name,
            "model": stage.model.describe(),
            "lengths": stage.workload.origin,
            "pairs_per_step": stage.workload.pairs_per_step,
            **shape(stage, task),
            "contenders": [],
        }
        self.record["stages"].append(entry)
        if self.left < self.pace.least:
            entry["note"] = LATE
            return
        try:
            entry["truth"] = expected = self.worker.do(truth, task, self.pace.overhead)
        except WorkError as error:
            entry["note"] = f"failed: {error}"
            return
        entry["tolerance"] = tolerances(task)
        parts: dict[str, Callable[[StageRun], None]] = {
            "ladder": partial(self._climb, changes=LADDER),
            "short": partial(self._climb, changes=SHORT),
            "sides": partial(self._each, ways=_side_ways()),
            "trl": self._tune_trl,
            "trl best": self._repeat_trl,
        }
        for part in stage.parts:
            parts[part](StageRun(stage, task, expected, entry))

    def task(self, stage: Stage, num_steps: int) -> Task:
        """Return what contenders of a stage are given, with rows for so many steps."""
        workload, model = stage.workload, stage.model
        count = num_steps * workload.pairs_per_step // workload.pairs_per_row
        groups = workload.groups(count, model.sizes.vocab)
        return Task(
            Rows(groups, tokenizer_of(PAD, EOS), f"random ids, {workload.origin}"),
            num_steps=num_steps,
            device=self.device,
            pairs_per_step=workload.pairs_per_step,
            warmup=min(self.pace.warmup, num_steps - 1),
            lr=1e-6,
            model=model,
            checked=checked_rows(groups, 4, 1024),
            other_reference=True,
        )

    def _climb(self, run: StageRun, changes: Sequence[Change]) -> None:
        """Make one change after the other; what is not available or fails is left out of those that follow."""
        way, before = Way(), None
        for name, change in changes:
            changed = replace(way, **change)
            line = self._add(run, name, changed)
            if "pairs_per_second" not in line:
                continue
            line["before"], way, before = before, changed, name

    def _each(self, run: StageRun, ways: Mapping[str, Way | TrlWay]) -> None:
        for name, way in ways.items():
            self._add(run, name, way)

    def _tune_trl(self, run: StageRun) -> None:
        """Try one change after the other on TRL, keep what makes it faster, then precompute its reference."""
        best, rate = TrlWay(), 0.0
        for _, change in (("", {}), *trl_changes(run.stage.workload.is_uniform)):
            changed = replace(best, **change)
            line = self._add(run, trl_name(changed), changed)
            if line.get("pairs_per_second", 0.0) > rate:
                best, rate = changed, line["pairs_per_second"]
        self.best_trl = best
        cached = {replace(best, is_cached=True), replace(best, is_cached=True, liger=False)}
        self._each(run, {trl_name(way): way for way in sorted(cached, key=trl_name)})

    def _repeat_trl(self, run: StageRun) -> None:
        """Run TRL as it was fastest before, with both kinds of reference; rows of many lengths are grouped."""
        best = replace(self.best_trl, sorts=not run.stage.workload.is_uniform)
        ways = (best, replace(best, is_cached=True))
        self._each(run, {trl_name(way): way for way in ways})

    def _add(self, run: StageRun, name: str, way: Way | TrlWay) -> dict[str, Any]:
        """Measure one contender at the batch size that is best for it, and write it down."""
        line: dict[str, Any] = {"name": name, "way": way, "note": LATE}
        if self.left >= self.pace.least:
            line |= self._fastest(Job(name, run.task, way, self.pace.contender), run.expected)
        run.entry["contenders"].append(line)
        rate = line.get("pairs_per_second")
        self.say(f"{run.stage.name}: {name}: {line['note'] or f'{rate:.2f} pairs/s'}")
        self.keep(self.record)
        return line

    def _fastest(self, job: Job, expected: dict[str, Any]) -> dict[str, Any]:
        found: dict[int, dict[str, Any]] = {}

        def rate(size: int) -> float | None:
            found[size] = line = self._attempt(replace(job, size=size), expected)
            return None if line.get("is_too_large") else line.get("pairs_per_second", 0.0)

        tried = search(rate, bounds_of(job, self._fitting(job)))
        best = tried.best or next(reversed(found))
        return found[best] | {"size": best, "tried": tried.rates}

    def _fitting(self, job: Job) -> float:
        """Return the tokens that are expected to fit at once; where nobody knows, any number, and it is tried."""
        if self.device_bytes is None:
            return math.inf
        way = job.way
        try:
            return fitting_tokens(
                job.task.model,
                is_cached=way.is_cached,
                recomputes=way.recomputes,
                device_bytes=self.device_bytes,
            )
        except Exception as error:  # noqa: BLE001  without a plan the search only takes longer
            self.say(f"{job.name}: no plan of memory, so the whole step is tried first; {failure_of(error)}")
            return math.inf

    def _attempt(self, job: Job, expected: dict[str, Any]) -> dict[str, Any]:
        """Run one contender at one size; what it says is checked before its times count."""
        limit = min(job.seconds + self.pace.overhead, max(self.left, self.pace.least))
        try:
            said = self.worker.do(measure, job, limit)
        except WorkError as error:
            return {"note": f"failed: {error}"}
        if said["note"]:
            return said
        found = verdict(said, expected, tolerances(job.task))
        said |= found
        if not found["note"]:
            said["pairs_per_second"] = sum(said["step_pairs"]) / typical_seconds(said)
        return said


def _ladder_ways() -> dict[str, Way]:
    way, ways = Way(), {}
    for name, change in LADDER:
        ways[name] = way = replace(way, **change)
    return ways


def _side_ways() -> dict[str, Way]:
    return {name: replace(SIDES_ON, **change) for name, change in SIDES}


def shape(stage: Stage, task: Task) -> dict[str, Any]:
    """Return the realised lengths and what the layouts make of them.

    Returns:
        ``sharing_limit``, the operations of padding-free rows over those of shared ones, and ``padding``, the
        tokens of whole steps padded to their longest row over those of padding-free ones.
    """
    rows, size = rows_of(task.rows.groups), stage.workload.pairs_per_step // stage.workload.pairs_per_row
    batches = [rows[at : at + size] for at in range(0, len(rows), size)]
    loads = {layout: load_of(batches, layout) for layout in LAYOUTS}
    flops = {layout: step_flops(stage.model.counted, load) for layout, load in loads.items()}
    return {
        "realised": describe(rows),
        "sharing_limit": flops["padding-free"] / flops["shared"],
        "padding": loads["padded"].tokens / loads["padding-free"].tokens,
    }
