"""Rows that a caller holds in memory go the same way as those of a file."""

from __future__ import annotations

from pathlib import Path

import toy

from prefopt.data.prepare import prepare
from prefopt.data.rows.source import Source

ROWS = [
    {"prompt": "w1 w2", "chosen": " w3", "rejected": " w4 w5"},
    {"prompt": "w1 w6", "chosen": "", "rejected": " w4"},
]


def test_rows_are_tokenized_and_bad_ones_named_by_number() -> None:
    prepared = prepare([Source("mine", rows=ROWS)], toy.tokenizer())
    assert len(prepared.table) == 1
    assert prepared.table[0].origin == "mine:1"
    assert [bad.origin for bad in prepared.report.bad] == ["mine:2"]


def test_the_cache_follows_the_content(tmp_path: Path) -> None:
    """The same name with other rows is another table."""
    first = prepare([Source("mine", rows=ROWS)], toy.tokenizer(), cache_dir=tmp_path)
    again = prepare([Source("mine", rows=list(ROWS))], toy.tokenizer(), cache_dir=tmp_path)
    changed = [{**ROWS[0], "chosen": " w7"}]
    other = prepare([Source("mine", rows=changed)], toy.tokenizer(), cache_dir=tmp_path)
    assert not first.report.from_cache and again.report.from_cache and not other.report.from_cache
    assert other.table[0].responses[0].tolist() != first.table[0].responses[0].tolist()
