"""Run the stages of the full-size step benchmark one contender at a time, within a time for all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from benchmarks._ceilings import ceilings
from benchmarks._flops import LAYOUTS, load_of, step_flops
from benchmarks._ladder import LADDER, SHORT, SIDES, SIDES_ON, Change, Stage, trl_changes, trl_name
from benchmarks._lengths import describe, rows_of
from benchmarks._measure import Job, measure, typical_seconds
from benchmarks._models import EOS, PAD
from benchmarks._ours import Way, checked_rows
from benchmarks._predict import fitting_tokens
from benchmarks._rows import Rows
from benchmarks._search import search
from benchmarks._task import Task
from benchmarks._trl import TrlWay
from benchmarks._truth import tolerances, truth, verdict
from benchmarks._worker import Doer, WorkError

TRIED = 1.5
"""Batches of up to so many times the tokens that are expected to fit are tried."""
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


@dataclass
class Session:
    """Everything measured so far; ``keep`` is called after each contender, so that nothing is lost."""

    device: str
    worker: Doer
    pace: Pace
    keep: Callable[[dict[str, Any]], None] = lambda record: None
    say: Callable[[str], None] = print
    record: dict[str, Any] = field(default_factory=lambda: {"ceilings": [], "float32": {}, "stages": []})
    device_bytes: int = 1 << 62
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
        self.device_bytes = found["device_bytes"] or self.device_bytes
        self.record["ceilings"].append(found)

    def compare(self, stage: Stage) -> None:
        """Hold every way that can run in float32 to the truth on a small model; nothing is timed."""
        task = self._task(stage, num_steps=2)
        try:
            expected = self.worker.do(truth, task, self.pace.overhead)
        except WorkError as error:
            self.record["float32"] = {"note": f"failed: {error}"}
            return
        ways: dict[str, Way | TrlWay] = dict(_ladder_ways())
        ways |= {name: replace(SIDES_ON, **change) for name, change in SIDES}
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
        task = self._task(stage, self.pace.warmup + self.pace.steps)
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
        parts: dict[str, Callable[[], None]] = {
            "ladder": partial(self._climb, entry, task, expected, LADDER),
            "short": partial(self._climb, entry, task, expected, SHORT),
            "trl": partial(self._tune_trl, entry, task, expected, stage.workload.is_uniform),
            "trl best": partial(self._repeat_trl, entry, task, expected, stage.workload.is_uniform),
            "sides": partial(
                self._each,
                entry,
                task,
                expected,
                {name: replace(SIDES_ON, **change) for name, change in SIDES},
            ),
        }
        for part in stage.parts:
            parts[part]()

    def _task(self, stage: Stage, num_steps: int) -> Task:
        workload, model = stage.workload, stage.model
        count = num_steps * workload.pairs_per_step // workload.pairs_per_row
        groups = workload.groups(count, model.sizes.vocab)
        return Task(
            Rows(groups, _tokenizer_json(), f"random ids, {workload.origin}"),
            num_steps=num_steps,
            device=self.device,
            pairs_per_step=workload.pairs_per_step,
            warmup=min(self.pace.warmup, num_steps - 1),
            lr=1e-6,
            model=model,
            checked=checked_rows(groups, 4, 1024),
            other_reference=True,
        )

    def _climb(
        self, entry: dict[str, Any], task: Task, expected: dict[str, Any], changes: Sequence[Change]
    ) -> None:
        """Make one change after the other; what is not available or fails is left out of those that follow."""
        way, before = Way(), None
        for name, change in changes:
            changed = replace(way, **change)
            line = self._add(entry, name, task, changed, expected)
            if "pairs_per_second" not in line:
                continue
            line["before"], way, before = before, changed, name

    def _each(
        self, entry: dict[str, Any], task: Task, expected: dict[str, Any], ways: Mapping[str, Way | TrlWay]
    ) -> None:
        for name, way in ways.items():
            self._add(entry, name, task, way, expected)

    def _tune_trl(
        self, entry: dict[str, Any], task: Task, expected: dict[str, Any], is_uniform: bool
    ) -> None:
        """Try one change after the other on TRL, keep what makes it faster, then precompute its reference."""
        best, rate = TrlWay(), 0.0
        for _, change in (("", {}), *trl_changes(is_uniform)):
            changed = replace(best, **change)
            line = self._add(entry, trl_name(changed), task, changed, expected)
            if line.get("pairs_per_second", 0.0) > rate:
                best, rate = changed, line["pairs_per_second"]
        self.best_trl = best
        cached = {replace(best, is_cached=True), replace(best, is_cached=True, liger=False)}
        self._each(entry, task, expected, {trl_name(way): way for way in sorted(cached, key=trl_name)})

    def _repeat_trl(
        self, entry: dict[str, Any], task: Task, expected: dict[str, Any], is_uniform: bool
    ) -> None:
        """Run TRL as it was fastest before, with both kinds of reference; rows of many lengths are grouped."""
        best = replace(self.best_trl, sorts=not is_uniform)
        ways = (best, replace(best, is_cached=True))
        self._each(entry, task, expected, {trl_name(way): way for way in ways})

    def _add(
        self, entry: dict[str, Any], name: str, task: Task, way: Way | TrlWay, expected: dict[str, Any]
    ) -> dict[str, Any]:
        """Measure one contender at the batch size that is best for it, and write it down."""
        line: dict[str, Any] = {"name": name, "way": way, "note": LATE}
        if self.left >= self.pace.least:
            line |= self._fastest(Job(name, task, way, self.pace.contender), expected)
        entry["contenders"].append(line)
        rate = line.get("pairs_per_second")
        self.say(f"{entry['name']}: {name}: {line['note'] or f'{rate:.2f} pairs/s'}")
        self.keep(self.record)
        return line

    def _fastest(self, job: Job, expected: dict[str, Any]) -> dict[str, Any]:
        found: dict[int, dict[str, Any]] = {}

        def rate(size: int) -> float | None:
            found[size] = line = self._attempt(replace(job, size=size), expected)
            return None if line.get("is_too_large") else line.get("pairs_per_second", 0.0)

        least, most, start = self._sizes(job)
        tried = search(rate, start=start, most=most, least=least)
        best = tried.best or next(reversed(found))
        return found[best] | {"size": best, "tried": tried.rates}

    def _sizes(self, job: Job) -> tuple[int, int, int]:
        """Return the smallest batch, the largest worth a try and the expected one.

        The whole step, or a half, a quarter and so on of it: packed tokens of ours, pairs of TRL's.
        """
        task, fits = job.task, fitting_tokens(job.task.model, job.way, self.device_bytes)
        if isinstance(job.way, TrlWay):
            pair = 2 * int(task.table.sizes(True).longest.max())
            whole, least, fits = task.pairs_per_step, 1, fits // pair
        else:
            tokens = task.table.sizes(job.way.layout == "shared").tokens
            least = int(tokens.max())
            plan = task.plan(job.way.layout == "shared", least)
            whole = max(int(tokens[plan.groups(step)].sum()) for step in range(task.num_steps))
        return least, _halved(whole, TRIED * fits), _halved(whole, fits)

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


def _halved(whole: int, limit: float) -> int:
    """Return the largest of ``whole``, its half, its quarter and so on that is at most ``limit``, at least 1."""
    while whole > max(1, limit):
        whole //= 2
    return whole


def _ladder_ways() -> list[tuple[str, Way]]:
    way, ways = Way(), []
    for name, change in LADDER:
        way = replace(way, **change)
        ways.append((name, way))
    return ways


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


def _tokenizer_json() -> str:
    from tokenizers import Tokenizer, models

    from benchmarks._rows import EOS as EOS_TEXT
    from benchmarks._rows import PAD as PAD_TEXT

    return str(Tokenizer(models.WordLevel({PAD_TEXT: PAD, EOS_TEXT: EOS}, unk_token=PAD_TEXT)).to_str())
