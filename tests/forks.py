"""Start Python programs at once: each is a fork of one process that has imported what they all import.

A program begins as under ``python``, but for its imports and its hash seed, which every fork shares.
"""

from __future__ import annotations

import faulthandler
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any

TESTS = Path(__file__).resolve().parent


class Fork:
    """A program that runs; answers as ``subprocess.Popen`` does."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], log: IO[str]) -> None:
        """Start ``python arguments``; what it writes goes to ``log``."""
        self.returncode: int | None = None
        words = {"arguments": list(arguments), "environment": dict(environment), "log": os.fspath(log.name)}
        self.pid: int = _ask({"start": words, "cwd": os.getcwd()})

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        if self.returncode is None:
            self.returncode = _ask({"poll": self.pid})
        return self.returncode

    def wait(self, timeout: float) -> int:
        """Wait until it ends."""
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("a fork", timeout)
            time.sleep(0.005)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it, if it runs still."""
        self.send_signal(signal.SIGKILL)


@cache
def _server() -> subprocess.Popen[str]:
    """Start the process whose forks the programs are; it ends with this one, whose end of the pipe closes."""
    paths = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    command = [sys.executable, str(Path(__file__).resolve())]
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )


def _ask(question: dict[str, Any]) -> Any:
    server = _server()
    assert server.stdin is not None and server.stdout is not None
    server.stdin.write(json.dumps(question) + "\n")
    server.stdin.flush()
    return json.loads(server.stdout.readline())


def serve() -> dict[str, Any] | None:
    """Answer questions until there are no more; in a fork, return at once what it is to run."""
    running: set[int] = set()
    for line in iter(sys.stdin.readline, ""):
        question = json.loads(line)
        if "start" in question:
            answer: int | None = os.fork()
            if not answer:
                return {**question["start"], "cwd": question["cwd"]}
            running.add(answer)
        else:
            pid, status = os.waitpid(question["poll"], os.WNOHANG)
            running.discard(pid)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        print(json.dumps(answer), flush=True)  # noqa: T201  the answer
    for pid in running:
        os.kill(pid, signal.SIGKILL)
    return None


def become(arguments: list[str], environment: dict[str, str], log: str, cwd: str) -> None:
    """Turn a fork into ``python arguments``."""
    for number, (path, flags) in enumerate(
        [(os.devnull, os.O_RDONLY), *[(log, os.O_WRONLY | os.O_APPEND)] * 2]
    ):
        os.dup2(os.open(path, flags), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    faulthandler.enable()
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        sys.path[0] = cwd
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        sys.path[0] = str(Path(arguments[0]).parent)
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    import peft  # noqa: F401
    import torch.distributed.fsdp  # noqa: F401
    import toy  # noqa: F401

    import prefopt.verbs.train  # noqa: F401

    wanted = serve()
    if wanted is not None:
        become(**wanted)
