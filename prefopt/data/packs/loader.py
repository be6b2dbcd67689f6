"""Build coming steps on a thread while the current step computes."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from prefopt.types import Step


class Ahead(Iterator[Step]):
    """Hand out steps ``start`` to ``stop - 1`` in order, some of them built beforehand on a thread.

    What goes wrong while a step is built is raised when that step's turn comes. The thread ends with
    the last step, with ``close``, when nobody holds the iterator any more, and with the interpreter.

    Args:
        build: makes the step of an index; called on the thread.
        start: first step.
        stop: one after the last step.
        device: where the steps will be moved; a GPU is made current on the thread.
        ahead: how many steps to keep ready.
    """

    def __init__(
        self,
        build: Callable[[int], Step],
        start: int,
        stop: int,
        *,
        device: torch.device | None = None,
        ahead: int = 2,
    ) -> None:
        def enter() -> None:
            # a new thread has the first GPU current, and pinning would open a context there on every rank
            if device is not None and device.type == "cuda":
                torch.cuda.set_device(device)

        self._build, self._ahead = build, ahead
        self._next, self._submitted, self._stop = start, start, stop
        self._pending: deque[Future[Step]] = deque()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="prefopt-pack", initializer=enter)
        # also runs before the interpreter takes its modules apart, where a `finally` would come too late
        self._end = weakref.finalize(self, self._pool.shutdown, wait=True, cancel_futures=True)

    def __next__(self) -> Step:
        if self._next >= self._stop:
            self.close()
            raise StopIteration
        self._fill()
        try:
            step = self._pending.popleft().result()
        except BaseException:
            self.close()
            raise
        self._next += 1
        self._fill()
        return step

    def close(self) -> None:
        """End the thread; steps that wait are dropped."""
        self._stop = self._next
        self._end()

    def _fill(self) -> None:
        while self._submitted < min(self._next + self._ahead, self._stop):
            self._pending.append(self._pool.submit(self._build, self._submitted))
            self._submitted += 1
