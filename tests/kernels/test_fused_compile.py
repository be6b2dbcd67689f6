"""Every kernel of every plan compiles for the chips it is meant for, without a GPU at hand.

Triton's own assembler reports shared memory and, through its disassembler, the instructions that came out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="needs triton")
pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("compile_fused.py")
SHARED_MEMORY = {80: 163, 89: 99, 90: 227, 100: 227, 120: 99}
"""KiB that one block may use, by compute capability."""


@pytest.fixture(scope="module")
def compiled() -> list[dict[str, int | str]]:
    """Compile in another process: in this one, kernels may be bound to the interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: list[dict[str, int | str]] = json.loads(done.stdout)
    return found


def test_shared_memory_suffices(compiled: list[dict[str, int | str]]) -> None:
    for kernel in compiled:
        assert int(kernel["shared"]) <= SHARED_MEMORY[int(kernel["arch"])] * 1024, kernel


def test_hopper_multiplies_by_warp_groups_and_loads_by_the_copy_engine(
    compiled: list[dict[str, int | str]],
) -> None:
    products = [kernel for kernel in compiled if kernel["arch"] == 90 and kernel["plan"] == "hopper half"]
    products = [kernel for kernel in products if kernel["source"] == "product"]
    assert len(products) >= 4
    for kernel in products:
        assert int(kernel["HGMMA"]) > 0 and int(kernel["HMMA"]) == 0, kernel
        assert int(kernel["UTMALDG"]) > 0, kernel


def test_inner_loops_of_products_do_not_spill(compiled: list[dict[str, int | str]]) -> None:
    for kernel in compiled:
        assert int(kernel["spills in loop"]) == 0, kernel
