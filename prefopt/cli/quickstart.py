"""``prefopt quickstart``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    output: Annotated[Path, typer.Option("--output", help="Folder for the run.")] = Path("runs/quickstart"),
) -> None:
    """Train a tiny built-in model in minutes."""
    from prefopt.verbs import quickstart as verb

    verb.run(output)
