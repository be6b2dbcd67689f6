"""The cells of one row under their canonical names, checked and converted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from prefopt.data.rows.convert import MISSING, cell_at, number, numbers, sequence, text, tools
from prefopt.data.rows.layouts.columns import SPARSE, TEXTS, is_unread
from prefopt.data.rows.layouts.layout import RowLayout
from prefopt.data.rows.loss_needs import Needs
from prefopt.data.rows.messages import (
    history,
    is_messages,
    is_open_transcript,
    is_texts,
    messages,
    open_transcript,
)
from prefopt.data.rows.raw_rows import RowError
from prefopt.words import spelled

Messages = list[dict[str, Any]]


class Fields:
    """The cells of one row under their canonical names."""

    def __init__(
        self, layout: RowLayout, value: Mapping[str, Any], needs: Needs, origin: str, row_id: int
    ) -> None:
        self.layout = layout
        self.value = value
        self.needs = needs
        self.origin = origin
        self.row_id = row_id
        self.findings: set[str] = set()
        """What is to be counted of the row, by the names that ``report`` has for it."""

    def cell(self, name: str) -> Any:
        """The value of a column, MISSING where there is none; messages in JSON text are opened."""
        path = self.column(name)
        is_other = name not in self.layout.columns and path in self.layout.columns.values()
        if is_other or is_unread(name, self.layout.source):
            return MISSING
        found = cell_at(self.value, path)
        return MISSING if found is None else self.opened(name, found, path)

    def opened(self, name: str, found: Any, at: str) -> Any:
        """Return a value of column ``name`` as the kind that its texts have in this source."""
        if name not in TEXTS or not isinstance(found, str):
            return found
        inside = sequence(found)
        if name in self.layout.opened:
            if not is_messages(inside) and found.strip():
                raise RowError(
                    at, f"must be messages as JSON text, as in other rows, found {spelled(found, 40)}"
                )
            return inside
        if is_messages(inside) or is_texts(inside):
            self.findings.add("json_texts")
        return found

    def column(self, name: str) -> str:
        """The path of a column; one that the first rows did not have is looked for in this row too."""
        path = self.layout.columns.get(name)
        if path is None and name in SPARSE:
            path = self._late(name)
        return name if path is None else path

    def _late(self, name: str) -> str | None:
        """The path where this row alone has a value for a column that the first rows did not have."""
        given = [
            alias
            for alias in self.layout.names_left(name)
            if cell_at(self.value, alias) not in (MISSING, None, "")
        ]
        if len(given) > 1:
            raise RowError(
                given[1], f"could be the {name}, but so could '{given[0]}'. Name one under columns"
            )
        return given[0] if given else None

    def is_empty(self, name: str) -> bool:
        return self.cell(name) in (MISSING, "")

    def has(self, name: str) -> bool:
        """Whether the rows have a column that the loss reads; a row without a value in it is then bad."""
        return name in self.layout.columns

    def number(self, name: str) -> float | None:
        """Return the number of a column, or None where the row has none and the loss does not read it."""
        value = self.cell(name)
        if value is MISSING or value == "":
            if name in self.needs.inputs:
                raise RowError(self.column(name), "missing")
            return None
        return number(value, self.column(name))

    def weight(self) -> float:
        value = self.number("weight")
        if value is not None and value < 0:
            raise RowError(self.column("weight"), f"must not be negative, found {value:g}")
        return 1.0 if value is None else value

    def probability(self, name: str) -> float | None:
        value = self.number(name)
        if value is not None and not 0 <= value <= 1:
            raise RowError(self.column(name), f"must be a probability from 0 to 1, found {value:g}")
        return value

    def system(self) -> Messages:
        value = self.cell("system")
        if value is MISSING or (isinstance(value, str) and not value.strip()):
            return []
        content = text(value, self.column("system"))
        if not self.layout.is_chat:
            why = "has text, but these rows are read as plain text, where it has no place"
            raise RowError(self.column("system"), why)
        return [{"role": "system", "content": content}]

    def before(self) -> Messages:
        """The turns before the prompt, from columns of their own."""
        return self.system() + self.history()

    def history(self) -> Messages:
        found = history(self.cell("history"), self.column("history"))
        if found and not self.layout.is_chat:
            why = "has turns, but these rows are read as plain text, where they have no place"
            raise RowError(self.column("history"), why)
        return found

    def refuse_history(self) -> None:
        """Refuse earlier turns beside a dialogue that is whole."""
        if history(self.cell("history"), self.column("history")):
            raise RowError(self.column("history"), "has turns, but the row holds a whole conversation")

    def tools(self) -> list[Any] | None:
        found = tools(self.cell("tools"), self.column("tools"))
        if found and not self.layout.is_chat:
            raise RowError(self.column("tools"), "found, but these rows are read as plain text")
        return found

    def embedding(self) -> npt.NDArray[np.float32] | None:
        if not self.has("prompt_embedding"):
            return None
        return numbers(self.cell("prompt_embedding"), self.column("prompt_embedding"))

    def prompt(self, name: str = "prompt") -> str | Messages:
        """The prompt in the form of the rows, from the column ``name``."""
        if not self.layout.is_chat:
            self.before()  # refuses turns, which plain text has no place for
            return self.prompt_text(name)
        turns = self.prompt_turns(name)
        if turns is None:
            raise RowError(self.column(name), "missing")
        if turns[-1]["role"] == "assistant":
            why = "ends with an assistant turn, so the answers reply to nobody"
            raise RowError(self.column(name), why)
        return turns

    def prompt_text(self, name: str = "prompt") -> str:
        """The prompt as text; Alpaca's ``input`` follows its ``instruction`` on a new line."""
        prompt = text(self.cell(name), self.column(name))
        if is_open_transcript(prompt):
            self.findings.add("spelled_turns")
        extra = self.input_of(name)
        return f"{prompt}\n{extra}" if extra else prompt

    def input_of(self, name: str = "prompt") -> str:
        """Alpaca's ``input``, which follows its ``instruction``; empty where there is none."""
        extra = self.value.get("input")
        is_read = self.column(name) == "instruction" and "input" not in self.layout.columns.values()
        if not is_read or extra in (None, [], {}) or (isinstance(extra, str) and not extra.strip()):
            return ""
        return text(extra, "input")

    def prompt_turns(self, name: str = "prompt") -> Messages | None:
        value = self.cell(name)
        if value is MISSING:
            return None
        is_text = isinstance(value, str) and self.layout.form != "transcript"
        if not is_text and self.input_of(name):
            raise RowError(
                "input", f"has a text, but '{self.column(name)}' has turns, which it cannot follow"
            )
        if is_text:
            turns = [{"role": "user", "content": self.prompt_text(name)}]
        elif isinstance(value, str):
            turns = open_transcript(value, self.column(name))
        else:
            turns = messages(value, self.column(name))
        return self.opened_by_own(turns)

    def opened_by_own(self, turns: Messages, *, is_whole: bool = False) -> Messages:
        """Put the row's system text and earlier turns before others, behind a system turn of theirs.

        Args:
            turns: a prompt, or a whole conversation that has no earlier turns.
            is_whole: it is the latter.
        """
        if is_whole:
            self.refuse_history()
        own = opening = self.system()
        rest: Messages = []
        for part in (self.history(), turns):
            found = part[:1] if part and part[0]["role"] == "system" else []
            if found and opening and found[0]["content"].strip() != opening[0]["content"].strip():
                name, what = ("system", "has a text") if own else ("history", "begins with a system turn")
                raise RowError(self.column(name), f"{what}, but the messages begin with another system turn")
            opening = found or opening
            rest += part[len(found) :]
        return opening + rest
