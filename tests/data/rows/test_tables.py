"""Of a damaged or odd table only the rows at fault are bad, or the file is refused in a line; the process lives."""

from __future__ import annotations

import datetime as dt
import os
import random
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from table_files import write_table

from prefopt.data.prepare import prepare
from prefopt.data.rows.source import Source
from prefopt.errors import DataError

COLUMNS = {"prompt": ["what is it", "q", "r", "s"], "chosen": ["a fox"] * 4, "rejected": ["a car"] * 4}
KINDS = ["parquet", "arrow", "stream"]


def written(path: Path, table: pa.Table, kind: str) -> str:
    """Write a table and return the path."""
    path = path / f"rows.{'parquet' if kind == 'parquet' else 'arrow'}"
    write_table(path, table, kind)
    return str(path)


def texts(*values: bytes) -> pa.Array:
    """Return bytes as if they were text, which nobody has checked."""
    binary = pa.array(values)
    return pa.StringArray.from_buffers(len(binary), *binary.buffers()[1:])


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_byte_is_a_bad_row_with_its_number(kind: str, tmp_path: Path, chatml: Any) -> None:
    columns = {**COLUMNS, "prompt": texts(b"q", b"r", b"\xff\xfe", b"s")}
    path = written(tmp_path, pa.table(columns), kind)
    prepared = prepare([Source(path)], chatml)
    (bad,) = prepared.report.bad
    assert bad.describe().startswith(f"{path}:row 3: prompt: not readable (Invalid UTF8")
    assert '"chosen": "a fox"' in bad.raw
    assert [prepared.table.origin(n) for n in range(3)] == [f"{path}:row {n}" for n in (1, 2, 4)]


FAR = pa.array([0, 2**62, 1, 2], pa.timestamp("us"))
ODD: dict[str, tuple[Callable[[], pa.Array], int]] = {
    # a column that nothing reads, and how many rows it makes bad
    "far timestamp": (lambda: FAR, 1),
    "far timestamp in a struct": (lambda: pa.StructArray.from_arrays([FAR], ["when"]), 1),
    "far timestamp in a list": (lambda: pa.ListArray.from_arrays([0, 1, 2, 3, 4], FAR), 1),
    "far date": (lambda: pa.array([0, 2**31 - 1, 1, 2], pa.int32()).cast(pa.date32()), 1),
    "unknown zone": (lambda: pa.array([0, 1, 2, 3], pa.timestamp("s", tz="Nowhere/Land")), 4),
    "dictionary": (lambda: pa.array(["x", "y", "x", None]).dictionary_encode(), 0),
    "bytes": (lambda: pa.array([b"\xff", b"a", b"", None]), 0),
    "decimal": (lambda: pa.array([Decimal("1.5"), None, Decimal(0), Decimal(2)]), 0),
    "map": (lambda: pa.array([[("a", 1)], [], None, [("b", 2)]], pa.map_(pa.string(), pa.int64())), 0),
    "duration": (lambda: pa.array([1, 2, 3, 4], pa.duration("s")), 0),
    "half": (lambda: pa.array([1.0, 2.0, None, 3.0], pa.float32()).cast(pa.float16()), 0),
    "null": (lambda: pa.nulls(4), 0),
    "time": (lambda: pa.array([dt.time(1)] * 4), 0),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_column_spoils_no_row_that_can_be_read(name: str, tmp_path: Path, chatml: Any) -> None:
    make, num_bad = ODD[name]
    path = written(tmp_path, pa.table({**COLUMNS, "odd": make()}), "arrow")
    if num_bad == len(COLUMNS["prompt"]):
        with pytest.raises(DataError, match=r"^\S+:row 1: odd: not readable"):
            prepare([Source(path)], chatml)
        return
    report = prepare([Source(path)], chatml).report
    assert (report.groups, len(report.bad)) == (4 - num_bad, num_bad)
    assert all(bad.describe().startswith(f"{path}:row 2: odd: not readable (") for bad in report.bad)


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Cut a file off, take bytes out or change some."""
    found = bytearray(content)
    at = draw.randrange(len(found))
    match draw.randrange(8):
        case 0:
            del found[at:]
        case 1:
            del found[at : at + draw.randint(1, 64)]
        case _:
            for _ in range(draw.choice([1, 1, 2, 16])):
                found[draw.randrange(len(found))] = draw.randrange(256)
    return bytes(found)


def outcome(path: Path, tokenizer: Any) -> str:
    """Read a file in a process of its own and say how that ended."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            prepare([Source(str(path))], tokenizer)
            found = "read"
        except DataError as error:
            found = "refused" if "\n" not in str(error) else "refused in many lines"
        except BaseException as error:  # noqa: BLE001 - which one it was is the finding
            found = type(error).__name__
        os.write(writer, found.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        found = pipe.read()
    _, status = os.waitpid(child, 0)
    return found or f"killed by {status}"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # newer Pythons on forks beside threads
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_read_or_refused(kind: str, tmp_path: Path, chatml: Any) -> None:
    """60 files with bytes changed, lost or cut off."""
    count = 50
    table = pa.table({name: cells[:1] * count for name, cells in COLUMNS.items()} | {"n": range(count)})
    table = table.append_column("kind", pa.array(["x", "y"] * (count // 2)).dictionary_encode())
    path = Path(written(tmp_path, table, kind))
    content, draw = path.read_bytes(), random.Random(7)
    found: Counter[str] = Counter()
    for _ in range(60):
        path.write_bytes(damaged(content, draw))
        found[outcome(path, chatml)] += 1
    assert set(found) == {"read", "refused"}, found
