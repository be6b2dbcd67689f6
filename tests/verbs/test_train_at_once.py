"""Several starts in one folder at one moment: one runs, the others are refused and change nothing."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
import toy
from forks import Fork

from prefopt.run import checkpoint, manifest

pytestmark = pytest.mark.slow

TRIALS = int(os.environ.get("PREFOPT_TRIALS", "2"))
"""How often each is tried."""


def start(folder: Path, number: int, *flags: str, **changes: str) -> Fork:
    """Start a run; what it says goes to a file of its own."""
    log = folder / f"log-{number}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PREFOPT_CACHE": str(folder / "cache")}
    with log.open("w") as file:
        return Fork(["-m", "prefopt", "train", *toy.recipe(folder, **changes), *flags], environment, file)


def said(folder: Path, number: int) -> str:
    return (folder / f"log-{number}").read_text()


def steps(folder: Path) -> list[int]:
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def is_sound(folder: Path, count: int) -> None:
    """The run is finished, each step is written once, and every file is what was written."""
    run = folder / "run"
    assert steps(folder) == list(range(1, count + 1))
    assert json.loads((run / "run.json").read_text())["finished"]
    kept = checkpoint.checkpoints(run / "checkpoints")
    assert [checkpoint.step_of(path) for path in kept] == [count - 1, count]
    for path in kept:
        checkpoint.verify(path)
    assert manifest.faults(run / "final") == []
    assert not [p for p in run.rglob("*") if p.name.startswith((".", "damaged-"))]


def check_pair(folder: Path, processes: list[Fork]) -> None:
    """One did all of it, the other was refused, and said why."""
    codes = [process.wait(120) for process in processes]
    assert sorted(codes) == [0, 2], [said(folder, n) for n in range(2)]
    refusal = said(folder, codes.index(2)).splitlines()[-1]
    assert "in use by another run (process" in refusal or "already holds a run" in refusal
    assert len([line for line in said(folder, codes.index(2)).splitlines() if "error:" in line]) == 1


@pytest.mark.parametrize("trial", range(TRIALS))
def test_of_two_starts_one_runs(trial: int, tmp_path: Path) -> None:
    toy.recipe(tmp_path)
    lrs = ["1e-3", "5e-2"]  # metrics of both would not mix unseen
    check_pair(tmp_path, [start(tmp_path, n, train__save_every="1", optim__lr=lrs[n]) for n in range(2)])
    is_sound(tmp_path, 6)


@pytest.mark.parametrize("trial", range(TRIALS))
def test_of_two_resumes_one_goes_on(trial: int, tmp_path: Path) -> None:
    """A run that was killed after some steps; both may find the lock that it left.."""
    toy.recipe(tmp_path)
    first = start(tmp_path, 0, train__save_every="1", train__steps="120")
    while not (tmp_path / "run" / "metrics.jsonl").exists() or len(steps_so_far(tmp_path)) < 4:
        assert first.poll() is None, said(tmp_path, 0)
        time.sleep(0.002)
    first.kill()
    assert first.wait(10) == -signal.SIGKILL
    pair = [start(tmp_path, n, "--resume", train__save_every="1", train__steps="120") for n in range(2)]
    check_pair(tmp_path, pair)
    is_sound(tmp_path, 120)


def steps_so_far(folder: Path) -> list[bytes]:
    return (folder / "run" / "metrics.jsonl").read_bytes().splitlines()


@pytest.mark.parametrize("trial", range(TRIALS))
def test_overwrite_beside_a_running_run_is_refused(trial: int, tmp_path: Path) -> None:
    toy.recipe(tmp_path)
    first = start(tmp_path, 0, train__save_every="1", train__steps="300")
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        assert first.poll() is None, said(tmp_path, 0)
        time.sleep(0.002)
    assert start(tmp_path, 1, "--overwrite", train__steps="2").wait(120) == 2
    refusal = said(tmp_path, 1).splitlines()[-1]
    assert f"in use by another run (process {first.pid} on " in refusal
    assert first.wait(120) == 0, said(tmp_path, 0)
    is_sound(tmp_path, 300)
