"""Run pytest so that being told to end counts as Ctrl-C: what failed so far is still written down."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

import pytest


def main(arguments: Sequence[str]) -> int:
    """Run pytest and return its exit code."""
    # set here, not left to Ctrl-C's own signal, which shells have background jobs ignore
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return int(pytest.main([*arguments]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
