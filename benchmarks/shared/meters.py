"""What is read off the device: the time of one call, and the memory held at most."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


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


def median_ms(run: Callable[[], object], device: str, *, warmup: int, timed: int) -> float:
    """Return the median of how long a call takes, milliseconds, without the first few."""
    return statistics.median([clock(run, device) for _ in range(warmup + timed)][warmup:])


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
