"""What there is to know of a layout of rows, and how the rows of one source are laid out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from prefopt.data.rows.convert import sequence
from prefopt.data.rows.layouts.columns import OWN_PROMPTS, SHARED, SPARSE, Tiers, is_unread
from prefopt.data.rows.layouts.forms import FORMS
from prefopt.data.rows.source import Source
from prefopt.types import Comparison

if TYPE_CHECKING:
    from prefopt.data.rows.layouts.fields import Fields


class Half(NamedTuple):
    """A column that is of no use without another, and what the other would say."""

    there: str
    lacking: str
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A layout: which columns a row has and what they mean. Every part is required.

    Args:
        name: what a recipe and the report call it; "" where its form alone names it.
        described: what a row needs, for messages; "" where that of its form says it.
        required: canonical names of the columns that every row has.
        optional: of those that it may have.
        lists: those of both that hold a list, not a text or messages.
        aliases: what sources call the columns that no other layout reads.
        gives_way: it is not meant where the rows fit another layout that is tried before.
        compares: rows hold answers to compare, not single ones.
        gives: what the columns found say of answers besides their text: "scores", "margin".
        notes: what to say of how a source's rows are understood.
        half: said where no layout fits and only this is lacking.
        form_of: the form of a row's cells, one of ``FORMS``, or None where they have none.
        read: the comparison that a row holds; a RowError where it cannot be used.
    """

    name: str
    described: str
    required: tuple[str, ...]
    optional: tuple[str, ...]
    lists: tuple[str, ...]
    aliases: Mapping[str, Tiers]
    gives_way: bool
    compares: bool
    gives: Callable[[RowLayout], set[str]]
    notes: Callable[[RowLayout], list[str]]
    half: Half | None
    form_of: Callable[[Mapping[str, Any]], str | None]
    read: Callable[[Fields], Comparison]


@dataclass(frozen=True, slots=True)
class RowLayout:
    """How the rows of one source are read.

    Args:
        form: of ``FORMS``, what an answer is.
        layout: what a row holds.
        columns: canonical name -> dotted path in the row, only names that the source has.
        source: its settings.
        found: all columns of the first rows, as they are called there.
        opened: canonical names of the columns whose texts are JSON of messages.
        may_turn: a later row with a column that only messages have a place for makes all of them messages.
    """

    form: str
    layout: Layout
    columns: Mapping[str, str]
    source: Source
    found: tuple[str, ...] = ()
    opened: frozenset[str] = frozenset()
    may_turn: bool = False

    @property
    def has_own_prompts(self) -> bool:
        """Whether the two answers of a pair may reply to different prompts."""
        return any(name in self.columns for name in OWN_PROMPTS)

    @property
    def is_chat(self) -> bool:
        """Whether rows become messages for the chat template, rather than plain text."""
        return FORMS[self.form].is_chat

    @property
    def name(self) -> str:
        """The layout as a recipe and the report call it."""
        return f"{self.layout.name} ({self.form})" if self.layout.name else self.form

    def gives(self, what: str) -> bool:
        """Whether the columns found give "scores" or a "margin"."""
        return what in self.layout.gives(self)

    def notes(self) -> list[str]:
        """Return what to say of how the rows are understood, a line each."""
        texts = [
            self.columns[name] for name in sorted(self.opened) if name in self.columns and name != "messages"
        ]
        named = [f"messages written as JSON text are opened: {', '.join(texts)}"] if texts else []
        if self.form == "transcript" and "prompt" in self.columns:
            named.append(
                "prompts of 'Human: … Assistant:' turns are read as messages; layout: text takes them as they stand"
            )
        return named + self.layout.notes(self)

    def names_left(self, name: str) -> list[str]:
        """Return what a shared column may be called where nothing else is read from there."""
        if is_unread(name, self.source):
            return []
        taken = self.columns.values()
        return [path for tier in SHARED[name] for path in tier if path not in taken]

    def unread(self, names: Iterable[str]) -> list[str]:
        """Return which columns of the rows, of those named, nothing is read of and nobody has said so."""
        used = {name for path in self.columns.values() for name in _with_parents(path)}
        late = [name for name in SPARSE if name in self.layout.optional and name not in self.columns]
        used |= {path for name in late for tier in SHARED[name] for path in tier}
        if "instruction" in self.columns.values():
            used.add("input")
        return [str(name) for name in names if name not in used and not self._is_off(name)]

    def parts(self, row: Mapping[str, Any]) -> list[str]:
        """Return the paths of what is in those objects of a row of which only parts are read."""
        paths = self.columns.values()
        roots = dict.fromkeys(path.split(".")[0] for path in paths if "." in path and path not in row)
        cells = {root: sequence(row[root]) for root in roots if root in row and root not in paths}
        return [f"{root}.{key}" for root, cell in cells.items() if isinstance(cell, Mapping) for key in cell]

    def _is_off(self, name: str) -> bool:
        return is_unread(name, self.source) or any(
            is_unread(canonical, self.source) and name in (path for tier in tiers for path in tier)
            for canonical, tiers in {**SHARED, **self.layout.aliases}.items()
        )


def _with_parents(path: str) -> list[str]:
    """Return a dotted path and those of the objects that it leads through."""
    steps = path.split(".")
    return [".".join(steps[:count]) for count in range(1, len(steps) + 1)]
