"""What a run leaves behind: where it comes from, and tables that line up."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from benchmarks.shared.environment import environment
from benchmarks.shared.results import save, table
from benchmarks.step.in_turns.team import Measured


def test_a_result_says_where_it_comes_from(tmp_path: Path) -> None:
    path = save("try", {"environment": environment("cpu", 2), "measured": {"x": Measured("x")}}, tmp_path)
    stored = json.loads(path.read_text())
    assert {"commit", "is_dirty", "device", "versions", "threads", "date"} <= stored["environment"].keys()
    # an installer may name a build of the same release otherwise, 2.13.0 or 2.13.0+cpu
    assert stored["environment"]["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert stored["measured"]["x"]["seconds"] == []


def test_a_table_lines_up() -> None:
    assert table(["", "a"], [["long", 1], ["x", 10]]) == "       a\nlong   1\nx     10"
