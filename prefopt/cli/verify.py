"""``prefopt verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="Folder of a run, a checkpoint or a final model.")
    ],
) -> None:
    """Compare stored files with their digests."""
    from prefopt.verbs import verify as verb

    verb.run(path)
