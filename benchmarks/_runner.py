"""What every benchmark shares: a record of the surroundings, timing in turns by process, stored results."""

from __future__ import annotations

import gc
import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import torch

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(os.environ.get("PREFOPT_BENCH_RESULTS") or ROOT / "benchmarks" / "results")
PACKAGES = (
    "torch",
    "triton",
    "transformers",
    "accelerate",
    "peft",
    "numpy",
    "trl",
    "datasets",
    "liger-kernel",
)


AfterStep = Callable[[float | None], object]
"""What is called after every optimizer step, with its loss where known; something true ends the training."""


class Contender(Protocol):
    """One way to train, started in a process of its own; loads, builds, then trains all steps in one go."""

    def load(self) -> None:
        """Import libraries and lay the data out; not part of the memory that is measured."""

    def build(self) -> None:
        """Make model, reference and optimizer."""

    def train(self, after_step: AfterStep) -> None:
        """Train every step and call back after each optimizer step."""


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


def environment(device: str, threads: int) -> dict[str, Any]:
    """Return what a reader needs to judge or repeat a measurement."""
    said = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD") or os.environ.get("PREFOPT_BENCH_COMMIT", ""),
        "is_dirty": bool(_git("status", "--porcelain", "--", "prefopt", "benchmarks/*.py")),
        "device": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
    }
    return said | ({"cuda": torch.version.cuda, **_gpu_state()} if device == "cuda" else {})


def _gpu_state() -> dict[str, str]:
    """Return the GPU's driver, clocks, temperature and power, as its tool reads them now."""
    if shutil.which("nvidia-smi") is None:
        return {}
    names = ("driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "temperature.gpu", "power.draw")
    words = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    values = done.stdout.splitlines()[0].split(", ") if done.returncode == 0 and done.stdout else []
    return dict(zip(names, values, strict=False))


def _git(*words: str) -> str:
    """Return what git says about the checkout, nothing where there is none."""
    if shutil.which("git") is None:
        return ""
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine()
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def is_installed(package: str) -> bool:
    """Tell whether a peer can be imported, without importing it."""
    return importlib.util.find_spec(package) is not None


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


def base_mib(device: str) -> float:
    """Forget the peak so far and return the memory in use, MiB."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    forget = Path("/proc/self/clear_refs")
    if forget.exists():
        forget.write_text("5")  # Linux: the high-water mark falls to what is resident now
    return peak_mib(device)


def peak_mib(device: str) -> float:
    """Return the most memory this process has held: allocated by torch on cuda, resident on the CPU; MiB."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.exists():
        # not ru_maxrss: it starts from the peak of the parent, which the process was forked from
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 2**20 if sys.platform == "darwin" else most / 2**10


def clock(run: Callable[[], object], device: str) -> float:
    """Return how long a call takes, milliseconds."""
    if device == "cpu":
        began = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - began)
    make: Any = torch.cuda.Event
    start, end = (make(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    milliseconds: float = start.elapsed_time(end)
    return milliseconds


def time_in_turns(
    contenders: Mapping[str, Callable[[int], tuple[float, float]]], turns: int, seconds: float
) -> dict[str, tuple[list[float], list[float]]]:
    """Let everybody run turn by turn, in an order that rotates; the first turn warms up.

    Args:
        contenders: name -> a function of the turn that returns milliseconds of forward and backward.
        turns: timed ones.
        seconds: after which a contender has had enough of them, if it had two.

    Returns:
        The milliseconds of each contender's turns.
    """
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in contenders}
    spent = dict.fromkeys(contenders, 0.0)
    for turn in range(turns + 1):
        shift = turn % max(1, len(contenders))
        order = list(contenders)
        for name in (*order[shift:], *order[:shift]):
            if spent[name] > seconds and turn > 2:
                continue
            began = time.perf_counter()
            found = contenders[name](turn)
            spent[name] += time.perf_counter() - began
            if turn:
                for kept, milliseconds in zip(times[name], found, strict=True):
                    kept.append(milliseconds)
    return times


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the norm of the error over the norm of what is expected."""
    return ((found.double() - expected).norm() / expected.norm()).item()


def failure_of(error: Exception) -> str:
    """Say in a few words how a contender failed; where it did goes to the log."""
    traceback.print_exception(error)
    first = (str(error).strip().splitlines() or [""])[0]
    return f"failed: {type(error).__name__}: {first[:120]}"


def save(name: str, record: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Write one result as JSON and return where."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(record, indent=1, default=_plain) + "\n")
    return path


def _plain(value: Any) -> Any:
    return asdict(value)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Lay rows out in columns; the first is text, the others are numbers."""
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[at]) for row in cells) for at in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    )
