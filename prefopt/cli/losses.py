"""``prefopt losses``."""

from __future__ import annotations

from typing import Annotated, Optional

import typer


def command(
    name: Annotated[
        Optional[str],  # noqa: UP045 - read at run time, also on Python 3.10
        typer.Argument(
            metavar="[NAME]",
            help="A loss or transform to explain, also file.py:function.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """List the losses, or explain one."""
    from prefopt.verbs import losses as verb

    verb.run(name)
