"""What a kernel says of its memory before it runs, in numbers that the plan for a whole step adds up."""

from __future__ import annotations

from typing import NamedTuple


class Footprint(NamedTuple):
    """Bytes that one call holds besides its inputs."""

    forward: int  # at most, while the forward runs
    kept: int  # from the forward to the backward
    backward: int  # at most, while the backward runs, with what was kept
