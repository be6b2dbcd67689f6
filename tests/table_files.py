"""Files of Arrow tables, as tests of data write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def write_table(path: Path, table: Any, kind: str) -> None:
    """Write a table of pyarrow as "parquet", as an "arrow" file, or as a "stream" of Arrow's."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if kind == "parquet":
        pq.write_table(table, path)
        return
    new = pa.ipc.new_file if kind == "arrow" else pa.ipc.new_stream
    with pa.OSFile(str(path), "wb") as file, new(file, table.schema) as writer:
        writer.write_table(table)
