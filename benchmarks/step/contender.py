"""What a way to train must offer to be timed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

AfterStep = Callable[[float | None], object]
"""What is called after every optimizer step, with its loss where known; something true ends the training."""


class Contender(Protocol):
    """One way to train, started in a process of its own; loads, builds, then trains all steps in one go."""

    def load(self) -> None:
        """Import libraries and lay the data out; not part of the memory that is measured."""

    def build(self) -> None:
        """Make model, reference and optimizer."""

    def train(self, after_step: AfterStep) -> None:
        """Train every step and call back after each optimizer step."""


class NotAvailableError(Exception):
    """A contender cannot take part here; says why."""
