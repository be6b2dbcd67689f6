"""How a run is asked to end early: Ctrl-C, SIGTERM and SIGUSR1 become requests, honoured between two steps."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from prefopt.errors import PrefoptError

INTERRUPTED, PREEMPTED = 1, 2
"""Bits handed to ``Trainer.request``."""


class Stopped(PrefoptError):
    """A run that ended early because it was asked to, after a checkpoint."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@contextmanager
def stop_requests(request: Callable[[int], None]) -> Iterator[None]:
    """Turn Ctrl-C, SIGTERM and SIGUSR1 into requests; a second signal acts at once."""
    bits: dict[int, int] = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: PREEMPTED, signal.SIGUSR1: PREEMPTED}
    old: dict[int, Any] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        request(bits[number])
        for other, handler in old.items():
            signal.signal(other, handler)

    try:
        for each in bits:
            old[each] = signal.signal(each, handle)
    except ValueError:
        # only the main thread may set handlers; elsewhere the caller's stay
        warnings.warn("not on the main thread: signals will not lead to a checkpoint", stacklevel=2)
    try:
        yield
    finally:
        for each, handler in old.items():
            signal.signal(each, handler)
