"""Runs in which something happens in the middle of a step, for tests of what is left and how it goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from prefopt.trainer import Trainer


def at_step(patch: pytest.MonkeyPatch, step: int, do: Callable[[], Any]) -> None:
    """Do something in the middle of the step after ``step``, in every run while ``patch`` lasts."""
    real = Trainer._step

    def patched(self: Trainer, batch: Any, lr: float) -> Any:
        if batch.index == step:
            do()
        return real(self, batch, lr)

    patch.setattr(Trainer, "_step", patched)


def crash_after(patch: pytest.MonkeyPatch, step: int, error: type[BaseException] = RuntimeError) -> None:
    """Raise in the middle of the step after ``step``, as a crash would."""

    def crash() -> None:
        raise error("crash")

    at_step(patch, step, crash)
