"""What a trainer reads its steps from, and where in it the trainer stands."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import replace

from prefopt.data.packs.steps import Reader, Steps, check_source, read
from prefopt.errors import RecipeError
from prefopt.types import Step


class Feed:
    """Read the steps of a run from one source after another, by one iterator at a time.

    A source counts its own steps from 0; the run's index goes on over all of them. With a first source
    of 25 steps, the run's step 27 is step 2 of the second.

    Args:
        steps: the first source.
        reader: this rank.
    """

    def __init__(self, steps: Steps, reader: Reader) -> None:
        check_source(steps)
        self.steps, self.reader = steps, reader
        self._offset = 0  # index in the run of the source's step 0
        self._is_open = False

    def change(self, steps: Steps, offset: int) -> None:
        """Read from another source, whose step 0 has index ``offset`` in the run."""
        if self._is_open:
            raise RecipeError(
                "steps: an iterator over the trainer still reads the source that is to be replaced. Exhaust it "
                "or close() it first."
            )
        check_source(steps)
        self.steps, self._offset = steps, offset

    def read(self, start: int, stop: int, *, may_end: bool) -> Generator[Step, None, None]:
        """Hand out the run's steps ``start`` to ``stop - 1``.

        Args:
            start: index in the run.
            stop: one after the last.
            may_end: the source may have fewer steps.

        Raises:
            RecipeError: another iterator is open, the source ended too early, or its steps are wrong.
        """
        if self._is_open:
            raise RecipeError(
                f"trainer: another iterator over it is still open, at step {start + 1}. Exhaust it or close() "
                f"it first."
            )
        self._is_open, index = True, start
        try:
            with closing(read(self.steps, start - self._offset, stop - self._offset, self.reader)) as steps:
                for step in steps:
                    yield replace(step, index=index)
                    index += 1
        finally:
            self._is_open = False
        if index < stop and not may_end:
            raise RecipeError(
                f"steps: {type(self.steps).__name__} ended after step {index}, but the run goes on to step {stop}. "
                f"Feed the trainer another source, lower num_steps, or say run(may_end=True)."
            )
