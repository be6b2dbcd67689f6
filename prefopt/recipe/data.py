"""The blocks of a recipe that name the rows, and say what becomes of those that cannot be used."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from prefopt.recipe.blocks import Block, Count, ShareOrCount, Text, some, wrong
from prefopt.recipe.explain import no_choice


def _layouts() -> tuple[str, ...]:
    # the table loads torch, for which a recipe that names no layout need not wait
    from prefopt.data.rows.layouts.table import LAYOUTS

    return ("auto", *LAYOUTS)


def _is_layout(name: str) -> str:
    if name != "auto" and name not in _layouts():
        raise wrong(no_choice(name, _layouts()))
    return name


def _layout_names(schema: dict[str, Any]) -> None:
    schema["enum"] = list(_layouts())


class DataSource(Block):
    """One source of rows."""

    path: Text
    """Hub id, a .jsonl .json .csv .parquet .arrow file (text also .gz), or a builtin: task."""
    split: Text | None = None
    """Split of a hub data set."""
    subset: Text | None = None
    """Configuration of a hub data set."""
    revision: Text | None = None
    """Branch, tag or commit of a hub data set."""
    limit: Count | None = None
    """Read at most this many rows, the first ones."""
    columns: dict[str, Text] | None = None
    """What prefopt expects: what the column is called here."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """How often an epoch draws each row, on average."""
    layout: Annotated[str, AfterValidator(_is_layout), Field(json_schema_extra=_layout_names)] = "auto"
    """Shape of the rows."""


def _listed(value: Any) -> Any:
    """Let one source stand without a list around it."""
    return [value] if isinstance(value, dict) else value


Sources = Annotated[
    tuple[DataSource, ...], Field(strict=False), BeforeValidator(_listed), AfterValidator(some)
]


class Rows(Block):
    """What happens to rows that cannot be used as they are."""

    max_bad: ShareOrCount = 0.01
    """Stop when more rows than this are bad: a share below 1, else a count."""
    on_identical: Literal["drop", "keep", "error"] = "drop"
    """Pairs whose two answers are the same tokens."""
    on_tie: Literal["drop", "keep", "error"] = "drop"
    """Answers with the same score."""
    truncate: Literal["keep_start", "keep_end", "drop", "error"] = "keep_start"
    """Rows beyond batch.max_tokens: cut the answers' tails, cut the prompt's head first, drop or refuse."""
    turns: Literal["all", "assistant"] = "all"
    """Score all of an answer of several turns, or only what its assistant turns say."""
