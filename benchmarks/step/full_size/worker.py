"""One process that does pieces of work in turn; it can be stopped, and a new one takes over where it failed."""

from __future__ import annotations

import gc
import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any, Protocol

import torch
from accelerate.state import AcceleratorState
from torch._dynamo.utils import counters

Work = Callable[[Any], dict[str, Any]]
DIRTY_MIB = 512
"""Device memory that a contender may leave behind before its process is given up."""


class WorkError(RuntimeError):
    """A piece of work failed, ran out of time or took its process down."""


class Doer(Protocol):
    """Whatever can do a piece of work."""

    def do(self, work: Work, argument: Any, seconds: float) -> dict[str, Any]: ...


class Worker:
    """Run functions in a process of its own, so that memory, compilers and a crashed GPU end with it.

    Args:
        threads: of torch in the process.
        setup_seconds: most for starting the process and importing what the first piece of work needs.
    """

    def __init__(self, threads: int, setup_seconds: float = 120.0) -> None:
        self.threads, self.setup_seconds = threads, setup_seconds
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None

    def do(self, work: Work, argument: Any, seconds: float) -> dict[str, Any]:
        """Return ``work(argument)``.

        Args:
            work: importable by name; what it raises ends the process.
            argument: can be pickled.
            seconds: most for the work; the process is ended when they are over.

        Raises:
            WorkError: there is no result; says why.
        """
        pipe = self._ready()
        try:
            pipe.send((work, argument))
            if not pipe.poll(seconds):
                raise WorkError(f"not done after {seconds:.0f} s")
            said: dict[str, Any] = pipe.recv()
        except (EOFError, OSError):
            code = self._ended()
            raise WorkError(f"its process ended with exit code {code}") from None
        except WorkError:
            self.close()
            raise
        if "raised" in said:
            self.close()
            raise WorkError(said["raised"])
        if said.get("is_dirty"):
            self.close()
        return said

    def _ready(self) -> Connection:
        """Return the line to a process that has started."""
        if self._pipe is not None:
            return self._pipe
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        # not a daemon: data loaders and compilers start processes of their own
        self._process = context.Process(target=_serve, args=(theirs, self.threads))
        self._process.start()
        theirs.close()
        self._pipe = ours
        if not ours.poll(self.setup_seconds):
            self.close()
            raise WorkError(f"a process did not start within {self.setup_seconds:.0f} s")
        try:
            ours.recv()
        except EOFError:
            raise WorkError(f"a process ended at its start with exit code {self._ended()}") from None
        return ours

    def _ended(self) -> int | None:
        """Wait for a process that is ending, and return its exit code."""
        process = self._process
        if process is not None:
            process.join(10)
        self.close()
        return None if process is None else process.exitcode

    def close(self) -> None:
        """End the process, if there is one."""
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._pipe = self._process = None


def _serve(pipe: Connection, threads: int) -> None:
    """Be the process: do what comes down the line until it is closed."""
    torch.set_num_threads(threads)
    pipe.send({})
    while True:
        try:
            work, argument = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(work(argument))
        except BaseException as error:
            traceback.print_exc()
            first = (str(error).splitlines() or [""])[0]
            pipe.send({"raised": f"{type(error).__name__}: {first[:200]}"})
            raise


def clean_up(device: str) -> dict[str, Any]:
    """Free what a contender left, and say whether too much of it stayed."""
    torch._dynamo.reset()
    counters.clear()
    # accelerate keeps device and precision of the first trainer of a process, and refuses others
    AcceleratorState._reset_state(reset_partial_state=True)
    gc.collect()
    if device == "cpu":
        return {}
    torch.cuda.empty_cache()
    left = torch.cuda.memory_allocated() / 2**20
    return {"left_mib": left, "is_dirty": left > DIRTY_MIB}
