"""The worked example in the head of ``step_layout`` is what its function returns."""

from __future__ import annotations

import doctest

from prefopt.data.packs import step_layout


def test_the_worked_example_holds() -> None:
    found = doctest.testmod(step_layout)
    assert found.attempted > 3 and found.failed == 0
