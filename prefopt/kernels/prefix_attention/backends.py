"""The table of attention back-ends: one file and one line each."""

from __future__ import annotations

from prefopt.kernels.prefix_attention import dense, flex, segments, varlen
from prefopt.kernels.prefix_attention.spec import Backend

BACKENDS: dict[str, Backend] = {
    each.name: each
    for each in (
        segments.BACKEND,
        dense.BACKEND,
        varlen.BACKEND,
        flex.BACKEND,
    )
}

FASTEST_ON_GPUS = ("varlen", "flex", "segments")
"""The order in which ``auto`` asks on a GPU; the last can always serve."""
ELSEWHERE = "segments"
"""What ``auto`` takes on all other devices."""
