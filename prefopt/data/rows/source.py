"""Read the rows of one source, be it a file or a hub dataset; the only home of datasets."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from prefopt.data.rows.files import csv_rows, json_rows, jsonl_rows, read_bytes
from prefopt.data.rows.raw_rows import RawRow, file_error, one_line
from prefopt.data.rows.tables import arrow_rows, batch_rows, parquet_rows
from prefopt.words import nearest

FORMATS = (".json", ".jsonl", ".csv", ".parquet", ".arrow")
"""Extensions that can be read; the first three also with ``.gz`` behind."""

_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+|\w[\w-]*")
_OTHER_FILES = (".txt", ".tsv", ".xlsx", ".xml", ".yaml", ".zip", ".zst", ".gz", ".feather", ".ndjson")


@dataclass(frozen=True, slots=True)
class Source:
    """One source of rows.

    Args:
        path: a file (.json .jsonl .csv .parquet .arrow, text also .gz) or a hub dataset id.
        split: hub only; None means "train".
        subset: hub only, the dataset's configuration.
        revision: hub only, a commit, tag or branch.
        limit: read only the first rows; None means all.
        columns: canonical name -> the source's own, dotted paths allowed (``answers.0.text``); False: none, and
            so for any column of the rows that is not to be read.
        weight: how many times per epoch each row is drawn.
        layout: a name of ``layouts.LAYOUTS``, or "auto".
        better_is: what the column ``better`` says: lists of values by "first", "second" and "tie".
        turn: what messages call their parts: keys by "role" and "content", and "roles", their words -> ours.
        rows: the rows themselves, for a caller that holds them in memory; ``path`` is then only the
            name that errors use.
    """

    path: str
    split: str | None = None
    subset: str | None = None
    revision: str | None = None
    limit: int | None = None
    columns: Mapping[str, str | Literal[False]] | None = None
    weight: float = 1.0
    layout: str = "auto"
    better_is: Mapping[str, Sequence[str | int | bool]] | None = None
    turn: Mapping[str, Any] | None = None
    rows: Sequence[Mapping[str, Any]] | None = None

    @property
    def is_file(self) -> bool:
        """Whether the source is a local file rather than a hub dataset."""
        path = Path(self.path)
        beside_files = path.parent != Path() and path.parent.is_dir()
        looks_like_one = _suffix(self.path) in FORMATS + _OTHER_FILES or beside_files or path.exists()
        return looks_like_one or not _HUB_ID.fullmatch(self.path)

    @property
    def place(self) -> str:
        """What an error calls the source: the path, or ``dataset[split]``."""
        if self.rows is not None:
            return self.path if self.split is None else f"{self.path}[{self.split}]"
        return self.path if self.is_file else f"{self.path}[{self.split or 'train'}]"


def read_rows(source: Source) -> Iterator[RawRow]:
    """Yield the rows of ``source`` in order, at most ``source.limit`` of them.

    Rows of text files are named by the line they begin on, all others by their number, from 1.

    Raises:
        DataError: the source does not exist, cannot be read, or holds no row.
    """
    if source.rows is not None:
        rows: Iterator[RawRow] = (RawRow(f"{source.place}:{n}", row) for n, row in enumerate(source.rows, 1))
    else:
        rows = _read_file(source) if source.is_file else _read_hub(source)
    first = next(rows, None)
    if first is None:
        raise file_error(source.place, "holds no row", "Give a source with rows, or take it out of the list.")
    yield first
    yield from rows if source.limit is None else islice(rows, source.limit - 1)


def source_digest(source: Source) -> str:
    """Return a digest of what ``source`` holds: the bytes of the file, or the dataset's content.

    Raises:
        DataError: the source does not exist or cannot be read.
    """
    digest = blake2b(digest_size=20)
    if source.rows is not None:
        for row in source.rows:
            digest.update(json.dumps(row, sort_keys=True, default=str).encode())
        return digest.hexdigest()
    if source.is_file:
        path = _existing(source)
        try:
            for part in read_bytes(path):
                digest.update(part)
        except OSError as error:
            what = f"cannot be read ({error.strerror or error})"
            raise file_error(source.place, what, "Check the path and its rights.") from None
        return digest.hexdigest()
    for batch in _hub_batches(source):
        digest.update(batch.serialize())
    return digest.hexdigest()


def _read_file(source: Source) -> Iterator[RawRow]:
    path = _existing(source)
    match _suffix(source.path):
        case ".jsonl":
            return jsonl_rows(path, source.place)
        case ".json":
            return json_rows(path, source.place)
        case ".csv":
            return csv_rows(path, source.place)
        case ".parquet":
            return parquet_rows(path, source.place)
        case ".arrow":
            return arrow_rows(path, source.place)
    known = ", ".join(FORMATS)
    raise file_error(
        source.place, "is of no known format", f"Use a file that ends in {known}, text also with .gz."
    )


def _existing(source: Source) -> Path:
    path = Path(source.path)
    for name in ("split", "subset", "revision"):
        if getattr(source, name) is not None:
            what = f"'{name}: {getattr(source, name)}' applies to hub datasets, not to a file"
            raise file_error(source.place, what, f"Remove {name}.")
    if path.is_dir():
        raise file_error(source.place, "is a folder", f"Name a file in it ({', '.join(FORMATS)}).")
    if not path.exists():
        folder = path.parent if path.parent.is_dir() else None
        names = [entry.name for entry in folder.iterdir()] if folder else []
        near = nearest(path.name, names)
        hint = f"Did you mean '{(folder or Path()) / near}'?" if near else "Check the path."
        raise file_error(source.place, "no such file", hint)
    if path.stat().st_size == 0:
        raise file_error(source.place, "is empty", "Give a file with rows, or take it out of the list.")
    return path


def _suffix(path: str) -> str:
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    if suffixes[-1:] == [".gz"]:
        inner = suffixes[-2] if len(suffixes) > 1 else ""
        return inner if inner in (".json", ".jsonl", ".csv") else ".gz"
    return suffixes[-1] if suffixes else ""


def _read_hub(source: Source) -> Iterator[RawRow]:
    yield from batch_rows(_hub_batches(source), f"{source.place}:")


def _hub_batches(source: Source) -> Iterator[Any]:
    dataset = _load_hub(source)
    for table in dataset.with_format("arrow").iter(batch_size=1024):
        # One batch per slice, so that the digest does not depend on how the file was chunked.
        yield from table.combine_chunks().to_batches()


def _load_hub(source: Source) -> Any:
    import datasets

    split = source.split or "train"
    try:
        loaded = datasets.load_dataset(source.path, name=source.subset, split=split, revision=source.revision)
    except Exception as error:
        # The hub client raises dozens of types, from connection errors to bad split names.
        what = f"cannot be loaded as a hub dataset ({type(error).__name__}: {one_line(error)})"
        way_out = "Check the id, split, subset and revision and the connection, or give the path of a file."
        raise file_error(source.place, what, way_out) from error
    if not isinstance(loaded, datasets.Dataset):
        raise file_error(
            source.place, f"'{split}' names several splits or a stream", "Name one split, such as 'train'."
        )
    return loaded
