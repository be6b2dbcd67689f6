"""The search for the fastest batch that fits: where it starts, when it goes on, and where it ends."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from bench_cases import FOUR, TINY, session

from benchmarks.step.full_size import session as sessions
from benchmarks.step.full_size.batch_size import Bounds, bounds_of, halved, search
from benchmarks.step.full_size.measure import Job
from benchmarks.step.full_size.memory import fitting_tokens
from benchmarks.step.full_size.stages import Stage
from benchmarks.step.prefopt_contender import Way
from benchmarks.step.task import Task
from benchmarks.step.trl_contender import TrlWay


@pytest.fixture(scope="module")
def task() -> Task:
    return session().task(Stage(TINY, FOUR, ()), num_steps=2)


def tries(limit: int, gain: float = 2.0) -> Any:
    """Return a contender that runs out of memory beyond ``limit``; doubling makes it faster by ``gain``."""
    return lambda size: None if size > limit else gain ** (size.bit_length() - 1)


def test_search_halves_until_it_fits() -> None:
    found = search(tries(5), Bounds(least=1, most=64, start=16))
    assert found.rates == {16: None, 8: None, 4: 4.0} and found.best == 4


def test_search_doubles_while_it_fits_and_pays() -> None:
    assert search(tries(9), Bounds(least=1, most=64, start=2)).rates == {2: 2.0, 4: 4.0, 8: 8.0, 16: None}
    assert search(tries(9), Bounds(least=1, most=8, start=2)).rates == {2: 2.0, 4: 4.0, 8: 8.0}
    # the second doubling gains one per cent, so there is no third
    slow = search(tries(64, 1.01), Bounds(least=1, most=64, start=2))
    assert list(slow.rates) == [2, 4] and slow.best == 4


def test_search_ends_where_nothing_fits_or_something_is_wrong() -> None:
    nothing = search(tries(0), Bounds(least=2, most=8, start=8))
    assert nothing.rates == {8: None, 4: None, 2: None} and nothing.best is None
    assert search(lambda size: 0.0, Bounds(least=1, most=64, start=2)).rates == {2: 0.0}


def test_bounds_are_tokens_of_ours_and_pairs_of_trls(task: Task) -> None:
    """Two pairs a step in one row: a prompt of 10 and 4 answers of 4, shared 26 tokens, apart 56. TRL's pairs take
    2 * 14 = 28 tokens each; where 28 fit at once, one pair is expected to, and 1.5 * 28 / 28 is no second.
    """
    ours, theirs = Job("it", task, Way()), Job("it", task, TrlWay())
    assert bounds_of(ours, math.inf) == Bounds(least=26, most=26, start=26)
    assert bounds_of(replace(ours, way=Way("padded")), 40) == Bounds(least=56, most=56, start=28)
    assert bounds_of(theirs, math.inf) == Bounds(least=1, most=2, start=2)
    assert bounds_of(theirs, 28) == Bounds(least=1, most=1, start=1)


def test_batches_are_whole_steps_or_parts_that_should_fit() -> None:
    assert [halved(100, limit) for limit in (1e9, 100, 99, 30, 0.5)] == [100, 100, 50, 25, 1]


def test_the_search_starts_from_the_plan_or_from_the_whole_step(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a GPU nothing is planned; a plan that fails is said, and then everything is tried."""
    said: list[str] = []
    run, job = session(), Job("it", task, Way(is_cached=True))
    run.say = said.append
    assert run._fitting(job) == math.inf and not said
    run.device_bytes = 3 << 30
    assert run._fitting(job) == fitting_tokens(
        TINY, is_cached=True, recomputes=False, device_bytes=run.device_bytes
    )

    def refuse(*_: object, **__: object) -> int:
        raise AssertionError("no such layer")

    monkeypatch.setattr(sessions, "fitting_tokens", refuse)
    assert run._fitting(job) == math.inf
    assert said == [
        "it: no plan of memory, so the whole step is tried first; failed: AssertionError: no such layer"
    ]
