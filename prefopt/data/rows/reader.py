"""Read the rows of one source as comparisons, by the layout that its first rows have."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice

from prefopt.data.rows.layouts.detect import becomes_turns, detect, to_comparison
from prefopt.data.rows.loss_needs import Needs, check_served
from prefopt.data.rows.raw_rows import RawRow
from prefopt.data.rows.source import Source, read_rows
from prefopt.types import Comparison

_DETECT_ROWS = 64


class BecomesTurns(Exception):
    """A late row says that a source which was read as plain text holds messages; it is to be read again."""

    def __init__(self, origin: str, source: Source) -> None:
        super().__init__(origin)
        self.source = source


class Reader:
    """Read one source.

    Args:
        source: a file, hub data set or rows in memory.
        needs: of the loss.
        has_template: the tokenizer can render messages.
        as_turns: plain text becomes messages, as a later row says.

    Raises:
        DataError: it cannot be read, has no known layout, or cannot give what the loss needs.
    """

    def __init__(self, source: Source, needs: Needs, has_template: bool, as_turns: bool) -> None:
        self.source = source
        self.needs = needs
        rows = read_rows(source)
        head = list(islice(rows, _DETECT_ROWS))
        self.layout = detect(head, source, needs, has_template=has_template, as_turns=as_turns)
        check_served(self.layout, needs, source.place)
        self.rows: Iterator[RawRow] = chain(head, rows)
        self.unread: list[str] = []
        """Columns that nothing is read of, in the order in which they were met."""
        self._seen: set[str] = set()

    def read(self, raw: RawRow, row_id: int) -> Comparison:
        """Read one row.

        Raises:
            RowError: it cannot be used.
            BecomesTurns: all rows of the source are to be read as messages.
        """
        if raw.error is not None:
            raise raw.error
        assert raw.value is not None
        if becomes_turns(self.layout, raw.value):
            raise BecomesTurns(raw.origin, self.source)
        parts = self.layout.parts(raw.value)
        if parts or not raw.value.keys() <= self._seen:
            new = [name for name in (*raw.value, *parts) if name not in self._seen]
            self._seen.update(new)
            self.unread += self.layout.unread(new)
        return to_comparison(self.layout, raw.value, row_id, raw.origin, self.needs)
