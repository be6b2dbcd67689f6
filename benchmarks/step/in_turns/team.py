"""Contenders in processes of their own that take turns: each builds, warms up and then sleeps between its rounds."""

from __future__ import annotations

import gc
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks.shared.meters import base_mib, peak_mib
from benchmarks.step.contender import Contender


@dataclass(frozen=True, slots=True)
class Legs:
    """How many optimizer steps are warm-up, and how the timed ones are dealt out in turns."""

    warmup: int
    rounds: int
    steps: int  # per round

    @property
    def total(self) -> int:
        return self.warmup + self.rounds * self.steps


@dataclass(slots=True)
class Measured:
    """What one contender did."""

    name: str
    seconds: list[float] = field(default_factory=list)  # wall time of every round
    cpu_seconds: list[float] = field(default_factory=list)  # processor time of every round, all threads
    losses: list[float | None] = field(default_factory=list)  # of every step, warm-up included
    build_seconds: float = 0.0
    peak_mib: float = 0.0  # growth from just before the model is made to the end of training
    process_mib: float = 0.0  # of the whole process, libraries included


class BenchmarkError(RuntimeError):
    """A contender failed, or a gate did."""


class Team:
    """Contenders in processes of their own, of which one works at a time.

    Args:
        makers: name -> a function, importable by the new process, that makes the contender.
        legs: warm-up and rounds.
        device: "cpu" or "cuda".
        threads: of every process; the others sleep while one works.
    """

    def __init__(
        self, makers: dict[str, Callable[[], Contender]], legs: Legs, device: str, threads: int
    ) -> None:
        self.legs = legs
        self.measured = {name: Measured(name) for name in makers}
        context = multiprocessing.get_context("spawn")
        self._pipes: dict[str, Connection] = {}
        self._processes = []
        with _thread_limit(threads):
            for name, maker in makers.items():
                self._pipes[name], theirs = context.Pipe()
                process = context.Process(
                    target=_work, args=(theirs, maker, legs, device, threads), name=name, daemon=True
                )
                process.start()
                theirs.close()
                self._processes.append(process)

    def run(self, report: Callable[[str], None] = lambda line: None) -> dict[str, Measured]:
        """Let every contender build and warm up, then time the rounds in turns; the order rotates."""
        names = list(self._pipes)
        try:
            for name in names:
                self._turn(name)
                self._turn(name)
                report(f"{name} is warm")
            for number in range(self.legs.rounds):
                shift = number % len(names)
                for name in (*names[shift:], *names[:shift]):
                    self._turn(name)
                report(f"round {number + 1} of {self.legs.rounds}")
            for name in names:
                self._turn(name)
        finally:
            for process in self._processes:
                process.terminate()
                process.join()
        return self.measured

    def _turn(self, name: str) -> None:
        """Let one contender do its next piece of work, and write down what it says."""
        pipe = self._pipes[name]
        try:
            pipe.send("go")
            said: dict[str, Any] = pipe.recv()
        except (EOFError, OSError):
            raise BenchmarkError(f"{name}: its process ended early; its own message is above.") from None
        if "error" in said:
            raise BenchmarkError(f"{name}: {said['error']}")
        result = self.measured[name]
        for key, value in said.items():
            kept = getattr(result, key)
            if isinstance(kept, list) and not isinstance(value, list):
                kept.append(value)
            else:
                setattr(result, key, value)


@contextmanager
def _thread_limit(threads: int) -> Iterator[None]:
    """Hand the number of threads to child processes, whose libraries read it when they are loaded."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _work(pipe: Connection, maker: Callable[[], Contender], legs: Legs, device: str, threads: int) -> None:
    """Be one contender: build, warm up and every round are one "go" each; the last one ends it."""
    torch.set_num_threads(threads)
    meter = _Meter(pipe, legs, device)
    try:
        pipe.recv()
        contender = maker()
        contender.load()
        meter.remember()
        before = time.perf_counter()
        contender.build()
        pipe.send({"build_seconds": time.perf_counter() - before})
        pipe.recv()
        meter.start()
        contender.train(meter)
        pipe.send(meter.end())
    except BaseException as error:
        pipe.send({"error": f"{type(error).__name__}: {error}"})
        raise


class _Meter:
    """Stop the clock at the end of every round and sleep until it is this contender's turn again."""

    def __init__(self, pipe: Connection, legs: Legs, device: str) -> None:
        self.pipe, self.legs, self.device = pipe, legs, device
        self.losses: list[float | None] = []
        self.wall = self.cpu = self.base = 0.0

    def remember(self) -> None:
        """Take the memory in use now as the base from which growth is counted."""
        gc.collect()
        self.base = base_mib(self.device)

    def start(self) -> None:
        """Be warm at once where no warm-up was asked for."""
        if self.legs.warmup == 0:
            self._rest({})

    def __call__(self, loss: float | None) -> None:
        self.losses.append(loss)
        done = len(self.losses) - self.legs.warmup
        if done < 0 or done % self.legs.steps:
            return
        if self.device == "cuda":
            torch.cuda.synchronize()
        seconds, cpu_seconds = time.perf_counter() - self.wall, time.process_time() - self.cpu
        self._rest({"seconds": seconds, "cpu_seconds": cpu_seconds} if done else {})

    def _rest(self, said: dict[str, float]) -> None:
        """Say how the leg went, sleep until the next one begins and start the clock."""
        self.pipe.send(said)
        self.pipe.recv()
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def end(self) -> dict[str, Any]:
        expected = self.legs.total
        assert len(self.losses) == expected, f"{len(self.losses)} steps were trained instead of {expected}"
        peak = peak_mib(self.device)
        return {"losses": self.losses, "peak_mib": peak - self.base, "process_mib": peak}
