"""A rank that is killed, stopped or fails ends all others within the time-out, and they name it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch.distributed as dist
import toy
from forks import TESTS, Fork

from prefopt.run.checkpoint import checkpoints

pytestmark = pytest.mark.slow

FAILS = """
import os, sys
from prefopt.cli import main
from prefopt.trainer import Trainer
real = Trainer._step
def step(self, batch, lr):
    if batch.index == 3 and os.environ["RANK"] == "1":
        {what}
    return real(self, batch, lr)
Trainer._step = step
sys.exit(main(["train", *sys.argv[1:]]))
"""


@contextmanager
def ranks(folder: Path, arguments: list[str]) -> Iterator[list[Fork]]:
    """Two ranks, as torchrun starts them, each with its own log."""
    with ExitStack() as stack:
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        shared = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PREFOPT_CACHE": str(folder / "cache"),
            "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2",
        }
        processes = []
        for rank in range(2):
            log = stack.enter_context((folder / f"log-{rank}").open("w+"))
            process = Fork(arguments, {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, log)
            stack.callback(process.kill)
            processes.append(process)
        yield processes


def has_lines(folder: Path, count: int) -> None:
    """Wait for so many lines of metrics."""
    end = time.monotonic() + 120
    metrics = folder / "run" / "metrics.jsonl"
    while not metrics.exists() or len(metrics.read_bytes().splitlines()) < count:
        assert time.monotonic() < end, "".join((folder / f"log-{rank}").read_text() for rank in range(2))
        time.sleep(0.01)


def arguments(folder: Path, timeout: float = 60) -> list[str]:
    return toy.recipe(
        folder,
        train__steps="100000",
        train__epochs="null",
        train__save_every="2",
        train__peer_timeout=str(timeout),
    )


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_is_named_by_the_other(victim: int, tmp_path: Path) -> None:
    with ranks(tmp_path, ["-m", "prefopt", "train", *arguments(tmp_path)]) as processes:
        has_lines(tmp_path, 3)
        processes[victim].kill()
        started = time.monotonic()
        code = processes[1 - victim].wait(60)
        assert time.monotonic() - started < 30
    said = (tmp_path / f"log-{1 - victim}").read_text().splitlines()[-1]
    assert code == 76, said
    assert f"rank {victim} (process {processes[victim].pid} on " in said and "is gone" in said
    assert checkpoints(tmp_path / "run" / "checkpoints")


@pytest.mark.parametrize("victim", [0, 1])
def test_a_stopped_rank_is_given_up_after_the_timeout(victim: int, tmp_path: Path) -> None:
    with ranks(tmp_path, ["-m", "prefopt", "train", *arguments(tmp_path, 6)]) as processes:
        has_lines(tmp_path, 3)
        processes[victim].send_signal(signal.SIGSTOP)
        started = time.monotonic()
        code = processes[1 - victim].wait(60)
        assert 4 < time.monotonic() - started < 30
    said = (tmp_path / f"log-{1 - victim}").read_text().splitlines()[-1]
    assert code == 76, said
    assert f"rank {victim} has given no sign of life for 6 seconds (train.peer_timeout)" in said


@pytest.mark.parametrize(
    ("what", "code"),
    [
        ("raise KeyError('x')", 70),
        ("raise RuntimeError('CUDA error: out of memory')", 2),
        ("raise MemoryError", 2),
        ("os._exit(9)", 9),
    ],
)
def test_a_rank_that_fails_ends_the_other(what: str, code: int, tmp_path: Path) -> None:
    script = tmp_path / "fails.py"
    script.write_text(FAILS.format(what=what))
    with ranks(tmp_path, [str(script), *arguments(tmp_path)]) as processes:
        codes = [process.wait(120) for process in processes]
    said = (tmp_path / "log-0").read_text().splitlines()[-1]
    assert codes == [76, code], said
    assert "error: rank 1 " in said and "bug in prefopt" not in said


def test_a_folder_in_use_is_refused_by_all_ranks(tmp_path: Path) -> None:
    with ranks(tmp_path, ["-m", "prefopt", "train", *arguments(tmp_path)]) as first:
        has_lines(tmp_path, 1)
        before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
        (tmp_path / "again").mkdir()
        recipe = ["-m", "prefopt", "train", *arguments(tmp_path), "--resume"]
        with ranks(tmp_path / "again", recipe) as second:
            assert [process.wait(120) for process in second] == [2, 76]
        said = [(tmp_path / "again" / f"log-{rank}").read_text().splitlines()[-1] for rank in range(2)]
        assert f"in use by another run (process {first[0].pid} on " in said[0]
        assert said[1] == "rank 1: error: rank 0 could not go on; its own line says why."
        assert (tmp_path / "run" / "metrics.jsonl").read_bytes().startswith(before)
