"""Where a measurement was made: commit, machine, versions; and which peers are there to be measured."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
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
