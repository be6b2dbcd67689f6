"""Start a Python program on several gloo ranks of this machine, as torchrun would."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

TESTS = Path(__file__).resolve().parent


def launch(world: int, arguments: Sequence[str | Path], timeout: float = 180, **variables: str) -> None:
    """Run ``python arguments`` on every rank and wait; one rank runs without a process group.

    Args:
        world: number of ranks.
        arguments: of the interpreter, the script or ``-m`` first.
        timeout: seconds after which every rank is killed.
        variables: environment of the ranks, over that of this process.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    shared = {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths, **variables}
    stack = ExitStack()  # closed at the end, and the ranks killed that are left
    processes, logs = [], []
    for rank in range(world):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        own |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        ranks = {key: str(value) for key, value in own.items()} if world > 1 else {}
        command = [sys.executable, *map(str, arguments)]
        env = {**os.environ, **shared, **ranks}
        # a file, for a rank whose pipe nobody reads yet would block and hold up the others
        logs.append(stack.enter_context(tempfile.TemporaryFile("w+")))  # noqa: SIM115
        processes.append(subprocess.Popen(command, env=env, stderr=logs[-1]))
        stack.callback(processes[-1].kill)
    with stack:
        for process, log in zip(processes, logs, strict=True):
            code = process.wait(timeout)
            log.seek(0)
            assert code == 0, log.read()[-3000:]
