"""What the benchmarks of a single op share: its contenders are tried out, then timed in turns, problem by problem."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from benchmarks.shared.meters import base_mib, clock, peak_mib
from benchmarks.shared.results import failure_of, save

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Shape = tuple[int, int, int]


class Line(Protocol):
    """What is written down of one contender at one problem, whatever the op."""

    note: str  # why there is no time
    forward_ms: list[float]
    backward_ms: list[float]
    peak_mib: float  # over the inputs; results included
    repeats_bits: bool


def total_ms(line: Line) -> float:
    """Return the median of forward and backward together."""
    turns = zip(line.forward_ms, line.backward_ms, strict=True)
    return statistics.median(forward + backward for forward, backward in turns)


class Limits(NamedTuple):
    """How long everybody is timed."""

    turns: int
    seconds: float  # after which a contender has had enough of them, if it had two


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward and backward of an op, made anew for every run."""

    forward: Callable[[], Tensor]
    leaves: Sequence[Tensor]  # whose gradients are wanted; without any there is no backward
    upstream: Tensor

    def run(self) -> list[Tensor]:
        """Return the result and the gradients."""
        with torch.set_grad_enabled(bool(self.leaves)):
            out = self.forward()
        upstream = self.upstream.to(out.dtype)
        return [out.detach(), *(torch.autograd.grad(out, self.leaves, upstream) if self.leaves else ())]

    def clock(self, device: str) -> tuple[float, float]:
        """Return the milliseconds of forward and backward."""
        kept: list[Any] = []  # so that freeing the results is not timed
        with torch.set_grad_enabled(bool(self.leaves)):
            forward = clock(lambda: kept.append(self.forward()), device)
        if not self.leaves:
            return forward, 0.0
        out = kept.pop()
        upstream = self.upstream.to(out.dtype)
        return forward, clock(lambda: kept.append(torch.autograd.grad(out, self.leaves, upstream)), device)


class Tried(NamedTuple):
    """What an op gave when it was tried out."""

    results: list[Tensor]  # and the gradients
    first_seconds: float  # of the first call, compilation included


def try_out(line: Line, make: Callable[[], Pass], device: str) -> Tried | None:
    """Run an op three times: to compile it, for its memory, and to compare the bits.

    Fills in ``peak_mib`` and ``repeats_bits``, or where it fails ``note``; then there is nothing to return.
    """
    try:
        began = time.perf_counter()
        make().run()[0].sum().item()
        first_seconds = time.perf_counter() - began
        base = base_mib(device)
        found = make().run()
        line.peak_mib = peak_mib(device) - base
        again = make().run()
    except Exception as error:  # noqa: BLE001  libraries and their compilers raise errors of every kind
        line.note = failure_of(error)
        return None
    line.repeats_bits = all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    return Tried(found, first_seconds)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return the norm of the error over the norm of what is expected."""
    error: float = ((found.double() - expected).norm() / expected.norm()).item()
    return error


def time_in_turns(
    contenders: Sequence[tuple[Line, Callable[[int], Pass]]], device: str, limits: Limits
) -> None:
    """Let everybody run turn by turn, in an order that rotates; the first turn warms up.

    Args:
        contenders: the line that gets the times, and a function of the turn that makes what is timed.
        device: "cpu" or "cuda".
        limits: of the timed turns.
    """
    spent = [0.0] * len(contenders)
    for turn in range(limits.turns + 1):
        shift = turn % max(1, len(contenders))
        order = range(len(contenders))
        for at in (*order[shift:], *order[:shift]):
            if spent[at] > limits.seconds and turn > 2:
                continue
            line, make = contenders[at]
            began = time.perf_counter()
            forward, backward = make(turn).clock(device)
            spent[at] += time.perf_counter() - began
            if turn:
                line.forward_ms.append(forward)
                line.backward_ms.append(backward)


def run_problems(
    name: str,
    record: dict[str, Any],
    problems: Mapping[str, Callable[[], tuple[str, Iterable[Line]]]],
    within: float,
) -> Path:
    """Solve one problem after the other, show what was found, and return where it is stored.

    Args:
        name: of the file.
        record: to which ``lines`` are added, and ``left_out``, the problems that time did not suffice for.
        problems: by title; each returns a report and its lines.
        within: seconds after which no further problem is begun.
    """
    began = time.monotonic()
    for title, solve in problems.items():
        if time.monotonic() - began > within:
            record["left_out"].append(title)
            continue
        report, lines = solve()
        print(report, flush=True)
        record["lines"] += lines
        save(name, record)  # after every problem, for a run may be cut short
    for title in record["left_out"]:
        print(f"{title}: left out, the time was up")
    return save(name, record)


def parser_of(
    benchmark: str, about: str | None, sizes: str, names: Collection[str]
) -> argparse.ArgumentParser:
    """Return what every benchmark of an op can be asked for.

    Args:
        benchmark: its name, as in ``bench_NAME`` and in the name of its results.
        about: the text above the options.
        sizes: what the three numbers of ``--shape`` are called.
        names: of the contenders.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.bench_{benchmark}",
        description=about,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    add, is_there = parser.add_argument, torch.cuda.is_available()
    add("--device", choices=("cpu", "cuda"), default="cuda" if is_there else "cpu")
    add("--dtype", choices=DTYPES, help="default float32 on the CPU, bfloat16 on a GPU")
    add("--shape", nargs="+", type=_shape, metavar=sizes)
    add("--only", nargs="+", choices=names, metavar="NAME", help="take part: " + "; ".join(names))
    add("--turns", type=int, default=30, help="timed runs of each")
    add("--seconds", type=float, default=10.0, help="after which a contender's turns end")
    add("--within", type=float, default=float("inf"), help="seconds after which no further problem is begun")
    add("--threads", type=int, default=2, help="of the CPU")
    add("--name", help=f"of the files in benchmarks/results; default {benchmark}_DEVICE")
    return parser


def read(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the words, with ``dtype`` as torch has it and ``limits`` out of turns and seconds; threads are set."""
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    given.dtype = DTYPES[given.dtype or ("float32" if given.device == "cpu" else "bfloat16")]
    given.limits = Limits(given.turns, given.seconds)
    return given


def _shape(text: str) -> Shape:
    first, second, third = (int(part) for part in text.split(","))
    return first, second, third
