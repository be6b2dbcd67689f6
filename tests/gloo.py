"""Start a Python program on several gloo ranks of this machine, as torchrun would."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import torch.distributed as dist
from forks import Fork

TESTS = Path(__file__).resolve().parent
Process = subprocess.Popen[bytes] | Fork


def launch(
    world: int,
    arguments: Sequence[str | Path],
    timeout: float = 180,
    is_fresh: bool = False,
    **variables: str,
) -> None:
    """Run ``python arguments`` on every rank and wait; one rank runs without a process group.

    Args:
        world: number of ranks.
        arguments: of the interpreter, the script or ``-m`` first.
        timeout: seconds after which every rank is ended.
        is_fresh: let each rank be an interpreter of its own, with its own imports and hash seed, not a fork.
        variables: environment of the ranks, over that of this process.

    Raises:
        AssertionError: a rank failed, which ends the others, or time ran out; with the end of what each
            rank wrote to stderr, and where those stood that still ran.
    """
    paths = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    shared = {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "PYTHONFAULTHANDLER": "1", **variables}
    with ExitStack() as stack:
        if world > 1:
            # this process holds the store that the ranks meet at, so no other program can take its port
            store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
            shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
            shared |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "LOCAL_WORLD_SIZE": str(world)}
        processes: list[Process] = []
        logs: list[IO[str]] = []
        for rank in range(world):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)} if world > 1 else {}
            # a file, for a rank whose pipe nobody reads yet would block and hold up the others
            logs.append(stack.enter_context(tempfile.NamedTemporaryFile("w+")))
            words, environment = list(map(str, arguments)), {**os.environ, **shared, **own}
            if is_fresh:
                process = subprocess.Popen([sys.executable, *words], env=environment, stderr=logs[-1])
            else:
                process = Fork(words, environment, logs[-1])
            processes.append(process)
            stack.callback(process.kill)
        codes = _wait(processes, time.monotonic() + timeout)
        assert not any(codes), _report(codes, logs)


def _wait(processes: Sequence[Process], end: float) -> list[int]:
    """Wait until all ranks are done, one fails or time is up; then end those left, which write where they stood."""
    while any(process.poll() is None for process in processes):
        if any(process.poll() for process in processes) or time.monotonic() > end:
            for process in processes:
                process.send_signal(signal.SIGABRT)
            break
        time.sleep(0.02)
    return [process.wait(10) for process in processes]


def _report(codes: list[int], logs: list[IO[str]]) -> str:
    parts = []
    for rank, (code, log) in enumerate(zip(codes, logs, strict=True)):
        log.seek(0)
        parts.append(f"rank {rank} exited with {code}:\n{log.read()[-3000:]}")
    return "\n".join(parts)
