"""``prefopt score``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Optional

import typer


class Dtype(str, Enum):
    """Dtypes that a model is loaded in."""

    float32 = "float32"
    bfloat16 = "bfloat16"


def command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id, local folder or builtin:tiny.")],
    data: Annotated[str, typer.Argument(metavar="DATA", help="A file or hub id, in any known layout.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="JSON-lines file to write.")],
    split: Annotated[Optional[str], typer.Option(help="Split of a hub data set.")] = None,  # noqa: UP045
    adapter: Annotated[Optional[str], typer.Option(help="Adapter on top of the model.")] = None,  # noqa: UP045
    dtype: Annotated[Dtype, typer.Option(help="Of the weights.")] = Dtype.float32,
    chat_template: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="In place of the tokenizer's own: a Jinja file or its text."),
    ] = None,
    max_tokens: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Truncate longer sequences; without it none is."),
    ] = None,
    tokens_per_batch: Annotated[int, typer.Option(min=1, help="Most tokens in one forward pass.")] = 16384,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """Write the log-probs of every answer."""
    from prefopt.verbs import score as verb

    verb.run(
        model,
        data,
        out,
        split=split,
        adapter=adapter,
        dtype=dtype.value,
        chat_template=chat_template,
        max_tokens=max_tokens,
        tokens_per_batch=tokens_per_batch,
        overwrite=overwrite,
    )
