"""The sums in small numbers at the head of the hard files are right."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import prefopt

PACKAGE = Path(prefopt.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


def test_hard_files_open_with_one() -> None:
    assert {"prefopt.data.packs.pack", "prefopt.data.packs.step_layout", "prefopt.losses._combine"} <= set(
        MODULES
    )


@pytest.mark.parametrize("name", MODULES)
def test_a_worked_example_comes_out_as_written(name: str) -> None:
    done = doctest.testmod(importlib.import_module(name))
    assert done.attempted > 0 and done.failed == 0
