"""What a run leaves behind: a JSON file, tables on the screen, and a few words where something failed."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

RESULTS = Path(os.environ.get("PREFOPT_BENCH_RESULTS") or Path(__file__).resolve().parents[1] / "results")


def save(name: str, record: dict[str, Any], folder: Path | None = None) -> Path:
    """Write one result as JSON, without a ``folder`` into ``RESULTS``, and return where."""
    folder = folder or RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(record, indent=1, default=asdict) + "\n")
    return path


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Lay rows out in columns; the first is text, the others are numbers."""
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[at]) for row in cells) for at in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    )


def failure_of(error: Exception) -> str:
    """Say in a few words how a contender failed; where it did goes to the log."""
    traceback.print_exception(error)
    first = (str(error).strip().splitlines() or [""])[0]
    return f"failed: {type(error).__name__}: {first[:120]}"
