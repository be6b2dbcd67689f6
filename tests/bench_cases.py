"""A tiny model and tiny rows for the tests of the full-size step benchmark, without processes of their own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks.step.flops import Sizes
from benchmarks.step.full_size.session import Pace, Session
from benchmarks.step.full_size.worker import Work
from benchmarks.step.models import MODELS
from benchmarks.step.workloads import Workload

TINY = replace(MODELS["Qwen3-0.6B"], name="tiny", sizes=Sizes(1, 16, 24, 2, 1, 8, 60), dtype="float32")
FOUR = Workload("4 answers", 10, (4,) * 4, pairs_per_step=2)
PACE = Pace(seconds=1e9, contender=0.0, warmup=1, steps=1)


class Here:
    """Do the work in this process."""

    def do(self, work: Work, argument: Any, seconds: float) -> dict[str, Any]:
        return work(argument)


def session(pace: Pace = PACE, **settings: Any) -> Session:
    return Session("cpu", Here(), pace, say=lambda line: None, **settings)
