"""Work that may fail on some ranks, and what must be the same on all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from prefopt.engine import Engine
from prefopt.errors import PeerError


@contextmanager
def together(engine: Engine) -> Iterator[None]:
    """Let every rank do a piece of work, and end on all of them where it fails on any.

    Raises:
        PeerError: on the ranks where it went well, if it failed on another.
    """
    try:
        yield
    except Exception:
        engine.any(True)
        raise
    if engine.any(False):
        raise PeerError("another rank could not go on; its own line says why.")


def is_same(engine: Engine, number: int) -> bool:
    """Tell whether every rank has the same number, of at most 62 bits."""
    low, high = engine.max(torch.tensor([-number, number], device=engine.device)).tolist()
    return bool(-low == high)
