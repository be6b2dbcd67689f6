"""``prefopt train``."""

from __future__ import annotations

from typing import Annotated

import typer

from prefopt.cli.recipes import Overrides, RecipePath, read
from prefopt.errors import RecipeError


def command(
    recipe: RecipePath,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest whole checkpoint.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run in the output folder.")
    ] = False,
) -> None:
    """Train a model as a recipe says."""
    if resume and overwrite:
        raise RecipeError(
            "command line: --resume goes on with a run, --overwrite replaces it. Give one of them."
        )
    loaded = read(recipe, overrides)
    from prefopt.verbs import train as verb

    verb.train(loaded, resume=resume, overwrite=overwrite)
